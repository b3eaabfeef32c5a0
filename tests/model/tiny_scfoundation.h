// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "model/scfoundation/network.h"

namespace scgraft {

inline constexpr int64_t kTinyFeatures = 7;

// Two layers of width 8 on either side, 12 entries a cell.
inline ScfoundationConfig tiny_scfoundation_config() {
  ScfoundationConfig config;
  config.positions = 12;
  config.bins = 5;
  config.bin_alpha = 0.7;
  config.dim = 8;
  config.layers = 2;
  config.heads = 2;
  config.decoder_dim = 6;
  config.decoder_layers = 2;
  config.decoder_heads = 2;
  config.decoder_head_dim = 4;
  return config;
}

// Random values, a function of (seed, name); norms are near 1 and 0.
inline ParameterSource random_scfoundation(uint64_t seed, DType dtype = DType::f32) {
  return [seed, dtype](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, dtype), {}};
    const bool norm = name.find("norm") != std::string::npos;
    initialise_uniform(p, norm ? 0.1 : name.ends_with("projection_matrix") ? 2.0 : 0.4, seed);
    if (norm && name.ends_with(".weight"))
      visit_real(dtype, [&]<class T>(Type<T>) {
        for (int64_t i = 0; i < p.value.numel(); ++i) p.value.as<T>()[i] += T(1);
      });
    return std::move(p.value);
  };
}

// Expressed entries of three cells, T and S behind the genes, and all of their entries.
struct TinyScfoundationCells {
  std::vector<std::vector<int32_t>> expressed, all;
  std::vector<std::vector<float>> values, all_values;
  std::vector<CellView> views, whole;

  TinyScfoundationCells() {
    const std::vector<std::vector<int32_t>> genes = {{1, 4, 7}, {0}, {2, 3, 5, 8, 9}};
    for (size_t c = 0; c < genes.size(); ++c) {
      auto& entries = expressed.emplace_back(genes[c]);
      entries.insert(entries.end(), {10, 11});
      auto& numbers = values.emplace_back();
      auto& every = all.emplace_back();
      auto& every_value = all_values.emplace_back(12, 0.0f);
      for (int32_t i = 0; i < 12; ++i) every.push_back(i);
      for (const int32_t entry : entries) {
        // Some values are shared by cells, one is hidden and one is the pad value.
        const float value = entry == 10  ? 4.0f
                            : entry == 4 ? 102.0f
                            : entry == 8 ? 103.0f
                                         : 0.7f * static_cast<float>(entry % 3 + 1);
        numbers.push_back(value);
        every_value[static_cast<size_t>(entry)] = value;
      }
      every_value[6] = 102.0f;  // hidden from the encoder
    }
    for (size_t c = 0; c < genes.size(); ++c) {
      const auto id = static_cast<int64_t>(40 + c);
      views.push_back({.cell = id, .genes = expressed[c], .values = values[c]});
      whole.push_back({.cell = id, .genes = all[c], .values = all_values[c]});
    }
  }
};

}  // namespace scgraft
