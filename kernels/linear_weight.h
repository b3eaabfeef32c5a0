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

  //   weight  [out, in]  f32, bf16 or f64; on a CUDA device f32, bf16 or f16
  //   dtype   bf16 rounds an f32 weight and multiplies in bf16 with f32 sums; otherwise the
  //           weight's. On a CUDA device any of its three types, with f32 sums
  // In reference contexts and for f64 the weight itself is kept as a view: it must stay alive. On a
  // CUDA device too, when it has the type and its rows begin at 16-byte boundaries; else a copy
  // with longer rows is kept. Throws ShapeError or TypeError when something does not fit.
  void pack(Context& ctx, ConstTensorView weight, PackedFor use, DType dtype);

  bool empty() const { return impl_ == nullptr; }
  int64_t in() const;   // columns of what is multiplied
  int64_t out() const;  // columns of the product
  int64_t nbytes() const;

  PackedFor use() const;
  // What kernels multiply with: [out, in] of the weight and zeros behind, in the type of the
  // product. Only on a CUDA device.
  ConstTensorView matrix() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  void pack_on_device(Context& ctx, ConstTensorView weight, PackedFor use, DType dtype);

  std::unique_ptr<Impl> impl_;
};

namespace cuda {  // in linear.cu
// to [out, columns] = weight [out, in], rounded to the type of `to`, and zeros behind.
void copy_weight(Context& ctx, ConstTensorView weight, TensorView to);
}  // namespace cuda

}  // namespace scgraft
