// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <utility>

#include "runtime/buffer.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Owns a Buffer plus Shape and DType. Move-only; copying is clone(), in words.
class Tensor {
 public:
  Tensor() = default;  // empty
  Tensor(Shape shape, DType dtype, Device device = Device::cpu())
      : buffer_(shape.numel() * size_of(dtype), device), shape_(shape), dtype_(dtype), set_(true) {}
  Tensor(Buffer buffer, Shape shape, DType dtype)
      : buffer_(std::move(buffer)), shape_(shape), dtype_(dtype), set_(true) {
    require(buffer_.nbytes() >= nbytes(), "a tensor ", shape, " of ", dtype, " needs ", nbytes(),
            " bytes, the buffer has ", buffer_.nbytes());
  }

  bool empty() const { return !set_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t nbytes() const { return numel() * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return buffer_.device(); }

  // True when the bytes belong to a mapped file: read them, never write them.
  bool is_shared() const { return buffer_.is_shared(); }

  ConstTensorView view() const { return {buffer_.data(), shape_, dtype_, device()}; }
  TensorView view() { return {buffer_.data(), shape_, dtype_, device()}; }
  template <class T, int N>
  auto as() {
    return view().as<T, N>();
  }
  template <class T, int N>
  auto as() const {
    return view().as<T, N>();
  }
  template <class T>
  auto as() {
    return view().as<T>();
  }
  template <class T>
  auto as() const {
    return view().as<T>();
  }

  // Copies wait for earlier work of a device and have arrived on return; copy() of a context
  // (runtime/context.h) does not wait.
  Tensor clone() const;
  // A copy on another device (or on the same one).
  Tensor to(Device device) const;
  // Another tensor over the same bytes, which neither may write.
  Tensor share() const { return empty() ? Tensor() : Tensor(buffer_.share(), shape_, dtype_); }
  // The same values as f32 (from f16, bf16, f64) or f64; throws TypeError for integers.
  Tensor converted(DType dtype) const;

 private:
  Buffer buffer_;
  Shape shape_;
  DType dtype_ = DType::f32;
  bool set_ = false;
};

// Copies all elements between tensors of one shape and type, on any two devices. Waits for earlier
// work of a device, and has arrived on return. Throws ShapeError or TypeError.
void copy(ConstTensorView from, TensorView to);

}  // namespace scgraft
