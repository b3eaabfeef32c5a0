// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"
#include "io/tensor_entry.h"
#include "io/torch_checkpoint.h"
#include "runtime/tensor.h"

namespace scgraft {

// The weights of a model by name, whatever file they are in. Names, types and shapes are known
// without reading elements; a tensor is made when it is first asked for and shares the mapped file
// where it can. Not thread-safe. Move-only.
class Checkpoint {
 public:
  const std::string& file() const { return file_; }
  // Where in the file the weights are: "" at the top, or e.g. "model_state_dict".
  const std::string& section() const { return section_; }
  // In order of the file; names have no section in front.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return index_.count(name) > 0; }

  // Throw ModelError (E-TENSOR-MISSING; tensor() also E-TENSOR-DTYPE and E-TENSOR-RANK).
  const TensorInfo& info(std::string_view name) const;
  const Tensor& tensor(std::string_view name) const;

  // Plain values that the file holds beside the weights: the metadata of a safetensors file, the
  // whole saved object of a PyTorch file without its tensors.
  const nlohmann::json& values() const { return values_; }

  // Identity of the weights: SHA-256 over name, type, shape and elements of all tensors, sorted by
  // name. The same in every format.
  std::string fingerprint() const;

 private:
  friend Checkpoint open_checkpoint(const std::string& path, const std::string& section);

  std::string file_;
  std::string section_;
  std::string prefix_;  // section and a slash, or empty
  std::unique_ptr<Safetensors> safetensors_;
  std::unique_ptr<TorchCheckpoint> torch_;  // one of the two
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  nlohmann::json values_;
  mutable std::map<std::string, Tensor, std::less<>> made_;
};

// Opens a safetensors or PyTorch file (a zip, or the older stream), told apart by their first
// bytes, or the one that find_checkpoint() finds in a folder.
//   section  path of the state dict inside a PyTorch file, e.g. "gene/state_dict". When empty: the
//            top if tensors are there, else model_state_dict, state_dict, model, module, net or
//            gene/state_dict (of the networks of a scFoundation file), else the only group of
//            tensors that is no optimizer state.
// Throws ModelError (E-CHECKPOINT and those of the readers).
Checkpoint open_checkpoint(const std::string& path, const std::string& section = {});

// The weights file in a folder: model.safetensors; else the only one of best_model.pt, model.pt,
// pytorch_model.bin, panglao_pretrain.pth and panglao_pretrained.pth; else the only file of weights
// there is (.safetensors, .pt, .pth, .bin, .ckpt; not adapters and not training states). Throws
// ModelError (E-CHECKPOINT) listing the candidates when there is none or a choice.
std::string find_checkpoint(const std::string& folder);

}  // namespace scgraft
