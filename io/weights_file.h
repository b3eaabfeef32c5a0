// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"
#include "io/sha256.h"
#include "io/tensor_entry.h"
#include "io/torch_checkpoint.h"
#include "runtime/tensor.h"

namespace scgraft {

// One file of weights, safetensors or PyTorch (a zip, or the older stream), told apart by their
// first bytes: what a Checkpoint is made of. Move-only.
class WeightsFile {
 public:
  // section: as of open_checkpoint(). Throws ModelError (E-CHECKPOINT and those of the readers).
  static WeightsFile open(const std::string& path, const std::string& section = {});

  const std::string& path() const { return path_; }
  const std::string& section() const { return section_; }
  // In order of the file; names have no section in front.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const;
  // As Checkpoint::values().
  const nlohmann::json& values() const { return values_; }

  // Throws ModelError (E-TENSOR-MISSING, E-TENSOR-DTYPE, E-TENSOR-RANK).
  Tensor tensor(std::string_view name) const;
  // Adds the elements of a tensor, row-major, to a digest.
  void digest(std::string_view name, Sha256& digest) const;

 private:
  std::string path_;
  std::string section_;
  std::string prefix_;  // section and a slash, or empty
  std::unique_ptr<Safetensors> safetensors_;
  std::unique_ptr<TorchCheckpoint> torch_;  // one of the two
  std::vector<TensorInfo> tensors_;
  nlohmann::json values_;
};

}  // namespace scgraft
