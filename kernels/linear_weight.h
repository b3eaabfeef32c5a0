// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>

#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Which product a weight [out, in] is packed for.
enum class PackedFor {
  forward,         // y = x W^T
  backward_input,  // dx = dy W
};

// A weight in the order a matrix product wants, made once and again after it changed. Move-only.
class PackedWeight {
 public:
  PackedWeight();
  ~PackedWeight();
  PackedWeight(PackedWeight&&) noexcept;
  PackedWeight& operator=(PackedWeight&&) noexcept;

  //   weight  [out, in]  f32, bf16 or f64
  //   dtype   bf16 rounds an f32 weight and multiplies in bf16 with f32 sums; otherwise the
  //           weight's
  // In reference contexts and for f64 the weight itself is kept as a view: it must stay alive.
  // Throws ShapeError or TypeError when something does not fit.
  void pack(Context& ctx, ConstTensorView weight, PackedFor use, DType dtype);

  bool empty() const { return impl_ == nullptr; }
  int64_t in() const;   // columns of what is multiplied
  int64_t out() const;  // columns of the product
  int64_t nbytes() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace scgraft
