// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_entry.h"
#include "runtime/buffer.h"
#include "runtime/tensor.h"

namespace scgraft {

// A PyTorch file, in the zip format (torch 1.6 and newer) or the stream that came before it: the
// tensors of the saved object, wherever they are nested in dictionaries, lists and tuples. Its
// pickle is read as data, see Pickle.
//
// A tensor is named by the keys that lead to it, joined by '/': a bare state dict gives
// "encoder.embedding.weight", a training state "model_state_dict/encoder.embedding.weight".
//
// Everything that the file claims is checked when it is opened (storage sizes, offsets, strides).
// Throws ModelError: E-ZIP, E-TRUNCATED, E-LIMIT, E-PICKLE, E-PICKLE-GLOBAL, E-TORCH.
class TorchCheckpoint {
 public:
  // Maps the file; tensors share the mapping.
  static TorchCheckpoint open(const std::string& path);
  // Parses bytes that `owner` keeps alive (null: the caller does).
  static TorchCheckpoint parse(std::span<const std::byte> bytes, const std::string& file,
                               std::shared_ptr<const void> owner = nullptr);

  // In order of the saved object.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return index_.count(name) > 0; }
  // Everything in the saved object that is a plain value: numbers, texts, lists, dictionaries.
  // Tensors and objects of other classes are left out of dictionaries and null in lists.
  const nlohmann::json& values() const { return values_; }

  // The elements in row-major order: bytes of the file where they are contiguous and aligned there,
  // so that tensors that were saved as one storage share it; else a copy. Throws ModelError
  // (E-TENSOR-MISSING).
  Buffer content(std::string_view name) const;
  // content() as a tensor. Throws ModelError (E-TENSOR-MISSING, E-TENSOR-RANK).
  Tensor tensor(std::string_view name) const;

 private:
  friend class TorchReader;
  // A tensor inside its storage; offset and strides count elements.
  struct Place {
    std::span<const std::byte> storage;
    int64_t offset = 0;
    std::vector<int64_t> strides;
  };
  size_t at(std::string_view name) const;

  std::string file_;
  std::shared_ptr<const void> owner_;
  std::vector<TensorInfo> tensors_;
  std::vector<Place> places_;  // of tensors_[i]
  std::map<std::string, size_t, std::less<>> index_;
  nlohmann::json values_;
};

}  // namespace scgraft
