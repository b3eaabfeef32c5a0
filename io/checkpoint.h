// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_entry.h"
#include "io/weights_file.h"
#include "runtime/tensor.h"

namespace scgraft {

// The weights of a model by name, whatever files they are in. Names, types and shapes are known
// without reading elements; a tensor is made when it is first asked for and shares the mapped file
// where it can. Not thread-safe. Move-only.
class Checkpoint {
 public:
  // The file; of several (shards) their index.
  const std::string& file() const { return file_; }
  // Those that hold the tensors: the file, or the shards.
  const std::vector<WeightsFile>& files() const { return files_; }
  // Where in the file the weights are: "" at the top, or e.g. "model_state_dict".
  const std::string& section() const { return section_; }
  // In order of the file, or of the shards; names have no section in front.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return index_.count(name) > 0; }

  // Throw ModelError (E-TENSOR-MISSING; tensor() also E-TENSOR-DTYPE and E-TENSOR-RANK).
  const TensorInfo& info(std::string_view name) const;
  const Tensor& tensor(std::string_view name) const;

  // Plain values that the file holds beside the weights: the metadata of a safetensors file or of
  // an index, the whole saved object of a PyTorch file without its tensors.
  const nlohmann::json& values() const { return values_; }

  // Identity of the weights: SHA-256 over name, type, shape and elements of all tensors, sorted by
  // name. The same in every format.
  std::string fingerprint() const;

 private:
  friend Checkpoint open_checkpoint(const std::string& path, const std::string& section);
  void add(WeightsFile file);
  void add_shards();

  std::string file_;
  std::string section_;
  std::vector<WeightsFile> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<size_t> file_of_;  // of tensors_[i], in files_
  std::map<std::string, size_t, std::less<>> index_;
  nlohmann::json values_;
  mutable std::map<std::string, Tensor, std::less<>> made_;
};

// Opens a safetensors or PyTorch file (a zip, or the older stream), told apart by their first
// bytes, the shards of an index (io/shard_index.h), or what find_checkpoint() finds in a folder.
//   section  path of the state dict inside a PyTorch file, e.g. "gene/state_dict". When empty: the
//            top if tensors are there, else model_state_dict, state_dict, model, module, net or
//            gene/state_dict (of the networks of a scFoundation file), else the only group of
//            tensors that is no optimizer state.
// Every shard must be there, and hold what the index says, nothing else and nothing twice.
// Throws ModelError (E-CHECKPOINT, E-SHARDS and those of the readers).
Checkpoint open_checkpoint(const std::string& path, const std::string& section = {});

// The weights file in a folder: model.safetensors or else its index; else the only one of
// best_model.pt, model.pt, pytorch_model.bin or else its index, panglao_pretrain.pth and
// panglao_pretrained.pth; else the only file of weights there is (.safetensors, .pt, .pth, .bin,
// .ckpt; not adapters, not training states and not shards). Throws ModelError (E-CHECKPOINT)
// listing the candidates when there is none or a choice.
std::string find_checkpoint(const std::string& folder);

}  // namespace scgraft
