// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/linear_weight.h"
#include "runtime/tensor.h"

namespace scgraft {

// The matrix library's handle of the CPU.
dnnl::engine& dnnl_engine();

// What linear.cc sees of a packed weight: products of kPanelRows rows, each run by one thread;
// panels are what runs in parallel.
struct PackedWeight::Impl {
  using Memory = dnnl::memory;
  struct Product {
    dnnl::matmul primitive;
    Memory::desc scratchpad;
  };

  int64_t in = 0;
  int64_t out = 0;
  PackedFor use = PackedFor::forward;
  DType dtype = DType::f32;
  ConstTensorView raw;  // the weight itself: the definition multiplies with it

  Tensor copy;             // on a CUDA device: the weight with longer rows, or empty
  ConstTensorView matrix;  // on a CUDA device: the weight or its copy

  Memory packed;  // [in, out] in the library's order; empty in reference mode
  Memory::desc x_desc, y_desc, bias_desc;
  Product plain, with_bias, accumulating;
  size_t scratchpad_bytes = 0;

  // Copies the raw weight into the library's order.
  void reorder();

  // W^T or W, whichever this product multiplies with.
  double raw_at(int64_t k, int64_t n) const {
    const int64_t i = use == PackedFor::forward ? n * in + k : k * out + n;
    if (raw.dtype() == DType::f64) return raw.as<double>()[i];
    if (raw.dtype() == DType::bf16) return static_cast<float>(raw.as<bf16>()[i]);
    const float value = raw.as<float>()[i];
    return dtype == DType::bf16 ? static_cast<float>(bf16(value)) : value;
  }
};

}  // namespace scgraft
