// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace scgraft {

// Where the tensors are of a model whose weights lie in several files (shards) of one folder:
//
//   model.safetensors.index.json, pytorch_model.bin.index.json
//   {"metadata": {...}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors", ...}}
//
// Source: Hugging Face transformers, how save_pretrained() splits a model (max_shard_size).
struct ShardIndex {
  std::vector<std::string> shards;                        // their paths, sorted
  std::map<std::string, size_t, std::less<>> weight_map;  // shards[i] of a tensor's name
  nlohmann::json metadata;                                // null where there is none

  // Throws ModelError: those of read_json(); E-SHARDS where the text is no such index, names no
  // tensor, or names a shard by more than the name of a file in its own folder; E-LIMIT; and
  // E-FILE-MISSING for a shard that is not there.
  static ShardIndex read(const std::string& path);
};

// Told by the end of the name.
bool is_shard_index(std::string_view path);

}  // namespace scgraft
