// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "io/json.h"
#include "io/safetensors.h"
#include "model/backbone.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/io/torch_state.h"
#include "tests/testing/op_test.h"

namespace scgraft {

// A checkpoint folder of config.json and model.safetensors, to be spoilt before it is written.
struct LoadedFolder {
  nlohmann::json config;
  std::map<std::string, Tensor> tensors;

  void take(Backbone& network) {
    for (const Parameter* p : network.parameters().all()) tensors[p->name] = p->value.clone();
  }
  void retype(const std::string& name, DType type) {
    const Tensor& t = tensors.at(name);
    tensors[name] = tensor_of(t.shape(), type, values_of(t.view()));
  }
  void write(const std::string& folder) const {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors) all.push_back({name, tensor.view()});
    write_safetensors(folder + "/model.safetensors", std::move(all), {}, Overwrite::replace);
    write_json(folder + "/config.json", config, Overwrite::replace);
  }
  // The same in `count` files and their index, tensors dealt out in turns; as PyTorch files where
  // `torch` says so.
  void write_shards(const std::string& folder, size_t count, bool torch = false) const {
    std::vector<std::vector<NamedTensor>> dealt(count);
    nlohmann::json index = {{"metadata", {{"total_size", 0}}}};
    size_t turn = 0;
    for (const auto& [name, tensor] : tensors) {
      index["weight_map"][name] = shard_name(turn % count, count, torch);
      dealt[turn++ % count].push_back({name, tensor.view()});
    }
    for (size_t i = 0; i < count; ++i) {
      const std::string path = folder + "/" + shard_name(i, count, torch);
      if (torch)
        put(path, torch_state(dealt[i]));
      else
        write_safetensors(path, std::move(dealt[i]), {}, Overwrite::replace);
    }
    write_json(folder + (torch ? "/pytorch_model.bin.index.json" : "/model.safetensors.index.json"),
               index, Overwrite::replace);
    write_json(folder + "/config.json", config, Overwrite::replace);
  }
  // For up to nine.
  static std::string shard_name(size_t i, size_t count, bool torch) {
    return cat(torch ? "pytorch_model" : "model", "-0000", i + 1, "-of-0000", count,
               torch ? ".bin" : ".safetensors");
  }
};

// Encodes a cell of so many tokens with the value 0, 1, 2 ...
inline Tensor encode_length(Backbone& network, int64_t length) {
  std::vector<int32_t> ids(static_cast<size_t>(length), 1);
  std::vector<float> places;
  for (int64_t i = 0; i < length; ++i) places.push_back(static_cast<float>(i));
  Context ctx;
  TokenBatch batch;
  batch.assign(ctx, std::vector<CellView>{{.cell = 0, .genes = ids, .values = places}});
  Tensor out({length, network.dim()}, DType::f32);
  network.encode(ctx, batch, {}, out.view());
  return out;
}

}  // namespace scgraft
