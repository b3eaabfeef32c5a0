// SPDX-License-Identifier: Apache-2.0
#include "io/tensor_entry.h"

#include <cstring>

#include "io/text.h"

namespace scgraft {

int64_t TensorInfo::numel() const {
  int64_t n = 1;
  for (int64_t d : dims) n *= d;
  return n;
}

std::string TensorInfo::dims_text() const {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += cat(i ? ", " : "", dims[i]);
  return text + "]";
}

Shape shape_of(const TensorInfo& info, FileKind kind, const std::string& file) {
  if (!info.dtype)
    throw_file_error(kind, file,
                     cat("tensor \"", escaped(info.name), "\" has elements of type ",
                         escaped(info.dtype_name), ", which this program cannot read"),
                     "E-TENSOR-DTYPE", "convert it to F32, BF16 or F16 first", escaped(info.name));
  if (info.dims.size() > static_cast<size_t>(Shape::kMaxRank))
    throw_file_error(kind, file,
                     cat("tensor \"", escaped(info.name), "\" of shape ", info.dims_text(),
                         " has more than ", Shape::kMaxRank, " dimensions"),
                     "E-TENSOR-RANK", "", escaped(info.name));
  return Shape(std::span<const int64_t>(info.dims));
}

Tensor tensor_over(std::shared_ptr<const void> owner, std::span<const std::byte> bytes,
                   const Shape& shape, DType dtype) {
  const int64_t nbytes = static_cast<int64_t>(bytes.size());
  if (reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<uintptr_t>(size_of(dtype)) == 0)
    return Tensor(Buffer(std::move(owner), bytes.data(), nbytes), shape, dtype);
  Tensor copy(shape, dtype);
  require(copy.nbytes() <= nbytes, "a tensor ", shape, " needs more than ", nbytes, " bytes");
  if (copy.nbytes() > 0)
    std::memcpy(copy.view().data(), bytes.data(), static_cast<size_t>(copy.nbytes()));
  return copy;
}

}  // namespace scgraft
