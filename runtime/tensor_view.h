// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/array.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/shape.h"

namespace scgraft {

// Pointer, shape, type and device of a row-major, contiguous tensor. Never owns, cheap to copy.
// `Void` is void or const void; use the aliases below.
template <class Void>
class BasicTensorView {
 public:
  using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;

  BasicTensorView() = default;  // empty: data() is null
  BasicTensorView(Void* data, Shape shape, DType dtype, Device device = Device::cpu())
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}
  // A mutable view is also a const view.
  template <class Other>
  requires(std::is_const_v<Void> && !std::is_const_v<Other>)
      BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : BasicTensorView(other.data(), other.shape(), other.dtype(), other.device()) {}

  bool empty() const { return data_ == nullptr; }
  Void* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t nbytes() const { return numel() * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  // Typed, indexable view. Throws TypeError or ShapeError when T or the rank does not fit.
  template <class T, int N>
  auto as() const {
    using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;
    require<TypeError>(dtype_ == DTypeOf<std::remove_const_t<T>>::value, "expected ",
                       DTypeOf<std::remove_const_t<T>>::value, " tensor, got ", dtype_);
    require(rank() == N, "expected a tensor of rank ", N, ", got shape ", shape_);
    std::array<int64_t, N> dims{};
    for (int i = 0; i < N; ++i) dims[static_cast<size_t>(i)] = shape_[i];
    return Array<Element, N>(static_cast<Element*>(data_), dims);
  }
  // Typed pointer to the first element.
  template <class T>
  auto as() const {
    using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;
    require<TypeError>(dtype_ == DTypeOf<std::remove_const_t<T>>::value, "expected ",
                       DTypeOf<std::remove_const_t<T>>::value, " tensor, got ", dtype_);
    return static_cast<Element*>(data_);
  }

  // The same elements under another shape of equal size.
  BasicTensorView reshape(Shape shape) const {
    require(shape.numel() == numel(), "cannot view ", shape_, " as ", shape);
    return {data_, shape, dtype_, device_};
  }
  // Entries [begin, end) of the first axis.
  BasicTensorView rows(int64_t begin, int64_t end) const {
    require(rank() >= 1 && 0 <= begin && begin <= end && end <= dim(0), "rows ", begin, "..", end,
            " of a tensor of shape ", shape_);
    std::array<int64_t, Shape::kMaxRank> dims{};
    for (int i = 0; i < rank(); ++i) dims[static_cast<size_t>(i)] = shape_[i];
    dims[0] = end - begin;
    const int64_t stride = dim(0) > 0 ? numel() / dim(0) * size_of(dtype_) : 0;
    return {static_cast<Byte*>(data_) + begin * stride,
            Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(rank()))), dtype_,
            device_};
  }

 private:
  Void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_;
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

// A view of elements that something else owns, e.g. a std::vector.
template <class T>
auto view_of(T* data, Shape shape) {
  using Element = std::remove_const_t<T>;
  using View = std::conditional_t<std::is_const_v<T>, ConstTensorView, TensorView>;
  return View(data, shape, DTypeOf<Element>::value);
}

}  // namespace scgraft
