// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/error.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Throws ShapeError or TypeError, naming the operation and the tensor, when `t` is not a `want`
// tensor of `dtype`.
inline void require_tensor(const char* op, const char* name, const ConstTensorView& t,
                           const Shape& want, DType dtype) {
  require(t.shape() == want, op, ": ", name, " must be ", want, ", got ", t.shape());
  require<TypeError>(t.dtype() == dtype, op, ": ", name, " must be ", dtype, ", got ", t.dtype());
}

// The same for a tensor that may be left out.
inline void require_optional(const char* op, const char* name, const ConstTensorView& t,
                             const Shape& want, DType dtype) {
  if (!t.empty()) require_tensor(op, name, t, want, dtype);
}

// The type of sums, statistics and parameters beside activations of type t: f32 beside the 16-bit
// types (which only CUDA computes on), else t.
inline DType sum_type(DType t) { return t == DType::bf16 || t == DType::f16 ? DType::f32 : t; }

// Elements of a view of T, or null when it was left out.
template <class T>
const T* data_or_null(const ConstTensorView& t) {
  return t.empty() ? nullptr : t.as<T>();
}
template <class T>
T* data_or_null(const TensorView& t) {
  return t.empty() ? nullptr : t.as<T>();
}

// Throws ShapeError when the packing does not describe `tokens` rows of the tensor `name`.
inline void require_packed(const char* op, const char* name, const Packing& packing,
                           int64_t tokens) {
  require(!packing.offsets.empty(), op, ": the packing has no offsets; it needs at least [0]");
  require(packing.tokens() == tokens, op, ": ", name, " has ", tokens, " tokens, the packing has ",
          packing.tokens());
}

}  // namespace scgraft
