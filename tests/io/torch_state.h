// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/safetensors.h"
#include "tests/io/archives.h"

namespace scgraft {

// State dicts as torch.save writes them, of f32 and f16.

using Storages = std::vector<std::pair<std::string, std::string>>;  // of torch_file()

// Pickled; the elements go to `storages`, each tensor's to one of its own.
inline std::string pickled_state(std::span<const NamedTensor> tensors, Storages& storages) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& [name, tensor] : tensors) {
    const Shape& shape = tensor.shape();
    std::vector<int32_t> size(static_cast<size_t>(shape.rank())), stride(size.size(), 1);
    for (size_t i = size.size(); i-- > 0;) {
      size[i] = static_cast<int32_t>(shape[static_cast<int>(i)]);
      if (i + 1 < size.size()) stride[i] = stride[i + 1] * size[i + 1];
    }
    const std::string key = std::to_string(storages.size());
    storages.emplace_back(key, std::string(static_cast<const char*>(tensor.data()),
                                           static_cast<size_t>(tensor.nbytes())));
    entries.emplace_back(
        name, pickled::tensor(tensor.dtype() == DType::f16 ? "HalfStorage" : "FloatStorage", key,
                              static_cast<int32_t>(tensor.numel()), 0, size, stride));
  }
  return pickled::dict(entries);
}

inline std::string torch_state(std::span<const NamedTensor> tensors) {
  Storages storages;
  const std::string state = pickled_state(tensors, storages);
  return torch_file(pickled::whole(state), storages);
}

}  // namespace scgraft
