// SPDX-License-Identifier: Apache-2.0
#include "kernels/relu_dropout.h"

#include <cstring>

#include "kernels/dropout_rows.h"
#include "kernels/relu_dropout_simd.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"
#include "runtime/cpu.h"

namespace scgraft {
namespace {

const ReluDropoutSimd& simd() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::relu_dropout_simd;
#endif
  return v3::relu_dropout_simd;
}

void check(const char* op, Context& ctx, ConstTensorView in, const char* in_name,
           ConstTensorView out, const char* out_name, ConstTensorView bits) {
  ctx.require_here(op, in, out, bits);
  require(in.rank() == 2, op, ": ", in_name, " must be [rows, dim], got ", in.shape());
  require(out.shape() == in.shape(), op, ": ", out_name, " must have the shape of ", in_name, ", ",
          in.shape(), ", got ", out.shape());
  require<TypeError>(out.dtype() == in.dtype(), op, ": ", in_name, " is ", in.dtype(), ", ",
                     out_name, " is ", out.dtype(), "; convert one of them first");
  if (bits.empty()) return;
  const Shape want{in.dim(0), (in.dim(1) + 7) / 8};
  require<TypeError>(bits.dtype() == DType::u8, op, ": bits must be u8, got ", bits.dtype());
  require(bits.shape() == want, op, ": bits must be ", want, " for ", in.dim(1), " features, got ",
          bits.shape());
}

// x <= 0 instead of x > 0, so that NaN comes out as NaN.
template <class T>
T relu(T x) {
  return x <= 0 ? T(0) : x;
}

template <class T>
void forward_definition(const RowDropout& drop, Array<const T, 2> x, Array<T, 2> y,
                        TensorView bits) {
  const int64_t bytes = (x.dim(1) + 7) / 8;
  for (int64_t r = 0; r < x.dim(0); ++r) {
    uint8_t* row = bits.empty() ? nullptr : bits.as<uint8_t>() + r * bytes;
    if (row != nullptr) std::memset(row, 0, static_cast<size_t>(bytes));
    drop.each(
        r, x.dim(1), [&](int64_t f) { return relu(x(r, f)); },
        [&](int64_t f, T dropped) {
          y(r, f) = dropped;
          if (row != nullptr && dropped > 0) row[f / 8] |= static_cast<uint8_t>(1 << f % 8);
        });
  }
}

void forward_row(const RowDropout& drop, const float* x, int64_t row, int64_t dim, float* y,
                 uint8_t* bits) {
  if (!drop.active()) return simd().forward(x, nullptr, 0, 1.0f, dim, y, bits);
  const Keep keep = drop.keep();
  drop.pieces(row, 0, dim, [&](int64_t f, int64_t n, const uint16_t* lanes) {
    simd().forward(x + f, lanes, keep.threshold, keep.scale, n, y + f,
                   bits == nullptr ? nullptr : bits + f / 8);
  });
}

template <class T>
void backward_definition(Array<const T, 2> dy, Array<const uint8_t, 2> bits, T scale,
                         Array<T, 2> dx) {
  for (int64_t r = 0; r < dy.dim(0); ++r)
    for (int64_t f = 0; f < dy.dim(1); ++f)
      dx(r, f) = (bits(r, f / 8) >> (f % 8) & 1) != 0 ? dy(r, f) * scale : T(0);
}

}  // namespace

void relu_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                  TensorView y, TensorView bits) {
  check("relu_dropout", ctx, x, "x", y, "y", bits);
  const RowDropout drop("relu_dropout", ctx, dropout, packing, x.dim(0));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::relu_dropout(ctx, x, dropout, packing, y, bits);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const auto in = x.as<T, 2>();
    const auto out = y.as<T, 2>();
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) {
        const int64_t dim = x.dim(1);
        uint8_t* bytes = data_or_null<uint8_t>(bits);
        for_row_panels(ctx, x.dim(0), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r)
            forward_row(drop, in.row(r), r, dim, out.row(r),
                        bytes == nullptr ? nullptr : bytes + r * ((dim + 7) / 8));
        });
        return;
      }
    }
    forward_definition<T>(drop, in, out, bits);
  });
}

void relu_dropout_backward(Context& ctx, ConstTensorView dy, ConstTensorView bits, Dropout dropout,
                           TensorView dx) {
  constexpr const char* kOp = "relu_dropout_backward";
  check(kOp, ctx, dy, "dy", dx, "dx", bits);
  if (dy.numel() == 0) return;
  require(!bits.empty(), kOp, ": bits must be those of the forward pass, got none");
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::relu_dropout_backward(ctx, dy, bits, dropout, dx);
  }
  // The bits hold the mask, so no coordinates are needed: only the scale.
  const float scale = dropout.active() ? HiddenDropout(dropout.p).scale : 1.0f;
  visit_real(dy.dtype(), [&]<class T>(Type<T>) {
    const auto in = dy.as<T, 2>();
    const auto out = dx.as<T, 2>();
    const auto mask = bits.as<uint8_t, 2>();
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) {
        for_row_panels(ctx, dy.dim(0), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r)
            simd().backward(in.row(r), mask.row(r), scale, dy.dim(1), out.row(r));
        });
        return;
      }
    }
    backward_definition<T>(in, mask, T(scale), out);
  });
}

}  // namespace scgraft
