// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <numeric>
#include <vector>

#include "model/scgpt/cells.h"
#include "model/token_store.h"
#include "runtime/random.h"
#include "tests/testing/op_test.h"
#include "training/objective.h"

namespace scgraft {

inline constexpr int64_t kTinyVocab = 24;  // <cls> is 0

// `count` cells of three classes; the genes 1 to 9 of a cell tell its class, the others nothing.
inline TokenStore tiny_store(int64_t count, uint64_t seed = 5) {
  TokenisedCells chunk;
  for (int64_t c = 0; c < count; ++c) {
    RandomStream random(seed, RandomUse::simulate, static_cast<uint32_t>(c));
    chunk.genes.push_back(0);
    chunk.values.push_back(0);
    for (int32_t gene = 1; gene < kTinyVocab; ++gene) {
      const bool marker = gene <= 9;
      if (marker ? (gene - 1) / 3 != c % 3 : random.below(2) == 0) continue;
      chunk.genes.push_back(gene);
      chunk.values.push_back(static_cast<float>(1 + random.below(9)));
    }
    chunk.offsets.push_back(static_cast<int64_t>(chunk.genes.size()));
  }
  TokenStore store;
  store.append(chunk);
  return store;
}

inline std::vector<int32_t> tiny_labels(int64_t count) {
  std::vector<int32_t> labels;
  for (int64_t c = 0; c < count; ++c) labels.push_back(static_cast<int32_t>(c % 3));
  return labels;
}

inline std::vector<int64_t> numbers(int64_t count, int64_t first = 0) {
  std::vector<int64_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), first);
  return out;
}

// Two layers of width 8 with every head.
inline ScgptNetwork tiny_net(uint64_t seed = 3) {
  ScgptConfig config;
  config.vocab = kTinyVocab;
  config.dim = 8;
  config.heads = 2;
  config.layers = 2;
  config.ffn = 12;
  config.dropout = 0;
  return ScgptNetwork(config, {.decoder = true, .mvc = true, .classes = 3},
                      scgpt_initialiser(seed));
}

inline std::vector<Tensor> values_of_all(const std::vector<Parameter*>& parameters) {
  std::vector<Tensor> out;
  for (const Parameter* p : parameters) out.push_back(p->value.clone());
  return out;
}

inline void expect_same_values(const std::vector<Tensor>& got, const std::vector<Tensor>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) expect_same_bits(got[i].view(), want[i].view());
}

// Compares the gradients of an objective with central differences along each parameter's own
// gradient. Objectives run in f32 and have kinks (ReLU): with a step of 1e-3 along a unit direction
// the rounding of a loss of about 1 leaves 2e-4 in a slope, and curvature and kinks stay below 1e-2
// of it. Gradients too small for that are passed over: `compared` is how many must not be.
inline void expect_slopes(Objective& objective, Backbone& net, const std::vector<CellView>& cells,
                          const std::vector<Parameter*>& parameters, int compared = 1) {
  Context ctx(Device::cpu(), {.threads = 1});
  TokenBatch batch;
  batch.assign(cells);
  const double weight = objective.weight(cells);
  ASSERT_GT(weight, 0);
  make_trainable(parameters);
  net.parameters_updated();
  ObjectiveSums sums;
  objective.run(ctx, batch, true, 1 / weight, sums);
  EXPECT_DOUBLE_EQ(sums.weight, weight);
  double whole = 0;
  for (const Parameter* p : parameters) whole += dot(p->grad.view(), p->grad.view());
  whole = std::sqrt(whole);
  ASSERT_GT(whole, 0);
  for (Parameter* p : parameters) {
    const double slope = std::sqrt(dot(p->grad.view(), p->grad.view()));
    if (slope < 1e-3 * whole) continue;  // below what f32 can show
    --compared;
    const Tensor start = p->value.clone();
    const auto mean_at = [&](double step) {
      for (int64_t i = 0; i < start.numel(); ++i)
        p->value.as<float>()[i] = static_cast<float>(
            static_cast<double>(start.as<float>()[i]) +
            step * static_cast<double>(std::as_const(p->grad).as<float>()[i]) / slope);
      net.parameters_updated();
      ObjectiveSums at;
      objective.run(ctx, batch, false, 0, at);
      return at.mean();
    };
    constexpr double kStep = 1e-3;
    const double measured = (mean_at(kStep) - mean_at(-kStep)) / (2 * kStep);
    mean_at(0);
    EXPECT_NEAR(measured, slope, 1e-2 * slope + 2e-4 * std::max(whole, 1.0)) << p->name;
  }
  EXPECT_LE(compared, 0) << "more gradients are as good as 0 than should be";
  freeze(parameters);
  net.parameters_updated();
}

}  // namespace scgraft
