// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/file_error.h"
#include "runtime/tensor.h"

namespace scgraft {

// What a file says about a tensor, known without reading its elements.
struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as the file spells it, e.g. "F32", "F8_E4M3", "FloatStorage"
  std::optional<DType> dtype;  // empty when this program has no such type
  std::vector<int64_t> dims;   // may have more dimensions than a Shape

  int64_t numel() const;          // product of dims; readers have checked that it fits
  std::string dims_text() const;  // "[2, 3]"
};

// The shape of an entry that somebody asked for. Throws (by `kind`, E-TENSOR-DTYPE,
// E-TENSOR-RANK) when no Tensor can hold it.
Shape shape_of(const TensorInfo& info, FileKind kind, const std::string& file);

// A tensor over bytes that `owner` keeps alive. The bytes are shared, unless they are not aligned
// for their type; then they are copied.
Tensor tensor_over(std::shared_ptr<const void> owner, std::span<const std::byte> bytes,
                   const Shape& shape, DType dtype);

}  // namespace scgraft
