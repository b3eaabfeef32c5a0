// SPDX-License-Identifier: Apache-2.0
#include "runtime/shape.h"

#include "runtime/checked.h"

namespace scgraft {

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  require(dims.size() <= kMaxRank, "a tensor has at most ", kMaxRank, " dimensions, got ",
          dims.size());
  Checked numel = 1;
  for (size_t i = 0; i < dims.size(); ++i) {
    numel = numel * dims[i];
    dims_[i] = dims[i];
  }
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int i = 0; i < shape.rank(); ++i) out << (i ? ", " : "") << shape[i];
  return out << ']';
}

}  // namespace scgraft
