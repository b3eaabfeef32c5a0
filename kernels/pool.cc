// SPDX-License-Identifier: Apache-2.0
#include "kernels/pool.h"

#include <algorithm>

#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

void check_rows(const char* op, const Context& ctx, const char* tokens_name, ConstTensorView tokens,
                const Packing& packing, const char* cells_name, ConstTensorView cells) {
  ctx.require_here(op, tokens, cells);
  require(tokens.rank() == 2, op, ": ", tokens_name, " must be [tokens, dim], got ",
          tokens.shape());
  require_packed(op, tokens_name, packing, tokens.dim(0));
  require_tensor(op, cells_name, cells, {packing.cells(), tokens.dim(1)}, tokens.dtype());
}

void check(const char* op, const Context& ctx, Pooling kind, const char* tokens_name,
           ConstTensorView tokens, ConstTensorView weight, const Packing& packing,
           const char* cells_name, ConstTensorView cells) {
  ctx.require_here(op, weight);
  check_rows(op, ctx, tokens_name, tokens, packing, cells_name, cells);
  if (kind == Pooling::weighted)
    require_tensor(op, "weight", weight, {tokens.dim(0)}, tokens.dtype());
  else
    require(weight.empty(), op, ": weights are only for weighted pooling, leave them out");
}

template <class T>
void pool_cpu(Context& ctx, Pooling kind, Array<const T, 2> x, const T* weight,
              const Packing& packing, Array<T, 2> y) {
  const int64_t dim = x.dim(1);
  switch (kind) {
    case Pooling::cls:
      for (int64_t b = 0; b < packing.cells(); ++b) {
        if (packing.length(b) > 0)
          std::copy_n(x.row(packing.begin(b)), dim, y.row(b));
        else
          std::fill_n(y.row(b), dim, T(0));
      }
      return;
    case Pooling::mean:
      sum_cell_rows<T>(
          ctx, packing, x, [](int64_t) { return T(1); }, y);
      parallel_for(ctx, packing.cells(), [&](int64_t b) {
        const T count = static_cast<T>(std::max<int64_t>(packing.length(b), 1));
        T* row = y.row(b);
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) row[d] /= count;
      });
      return;
    case Pooling::weighted:
      sum_cell_rows<T>(
          ctx, packing, x, [weight](int64_t t) { return weight[t]; }, y);
      return;
  }
}

template <class T>
void pool_backward_cpu(Context& ctx, Pooling kind, Array<const T, 2> dy, const T* weight,
                       const Packing& packing, Array<T, 2> dx) {
  const int64_t dim = dx.dim(1);
  for_each_run(ctx, packing, [&](int64_t cell, int64_t begin, int64_t end) {
    const T* gradient = dy.row(cell);
    const T count = static_cast<T>(packing.length(cell));
    for (int64_t t = begin; t < end; ++t) {
      T* row = dx.row(t);
      switch (kind) {
        case Pooling::cls:
          if (t == packing.begin(cell))
            std::copy_n(gradient, dim, row);
          else
            std::fill_n(row, dim, T(0));
          break;
        case Pooling::mean:
#pragma omp simd
          for (int64_t d = 0; d < dim; ++d) row[d] = gradient[d] / count;
          break;
        case Pooling::weighted: {
          const T w = weight[t];
#pragma omp simd
          for (int64_t d = 0; d < dim; ++d) row[d] = w * gradient[d];
          break;
        }
      }
    }
  });
}

// A unit of work owns some columns of a cell.
template <class T>
void pool_max_cpu(Context& ctx, Array<const T, 2> x, const Packing& packing, Array<T, 2> y,
                  Array<int32_t, 2> at) {
  constexpr int64_t kColumns = 64;
  const int64_t dim = x.dim(1);
  const int64_t blocks = (dim + kColumns - 1) / kColumns;
  parallel_for(ctx, packing.cells() * blocks, [&](int64_t unit) {
    const int64_t cell = unit / blocks;
    const int64_t first = unit % blocks * kColumns;
    const int64_t width = std::min(kColumns, dim - first);
    T* largest = y.row(cell) + first;
    int32_t* where = at.row(cell) + first;
    const int64_t begin = packing.begin(cell);
    if (packing.length(cell) > 0)
      std::copy_n(x.row(begin) + first, width, largest);
    else
      std::fill_n(largest, width, T(0));
    std::fill_n(where, width, packing.length(cell) > 0 ? static_cast<int32_t>(begin) : -1);
    for (int64_t t = begin + 1; t < packing.end(cell); ++t) {
      const T* row = x.row(t) + first;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const bool more = row[c] > largest[c] || row[c] != row[c];
        largest[c] = more ? row[c] : largest[c];
        where[c] = more ? static_cast<int32_t>(t) : where[c];
      }
    }
  });
}

template <class T>
void pool_max_backward_cpu(Context& ctx, Array<const T, 2> dy, Array<const int32_t, 2> at,
                           const Packing& packing, Array<T, 2> dx) {
  const int64_t dim = dx.dim(1);
  for_each_run(ctx, packing, [&](int64_t cell, int64_t begin, int64_t end) {
    const T* gradient = dy.row(cell);
    const int32_t* where = at.row(cell);
    for (int64_t t = begin; t < end; ++t) {
      T* row = dx.row(t);
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) row[d] = where[d] == t ? gradient[d] : T(0);
    }
  });
}

}  // namespace

void pool(Context& ctx, Pooling kind, ConstTensorView x, ConstTensorView weight,
          const Packing& packing, TensorView y) {
  check("pool", ctx, kind, "x", x, weight, packing, "y", y);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::pool(ctx, kind, x, weight, packing, y);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const T* w = data_or_null<T>(weight);
    pool_cpu<T>(ctx, kind, x.as<T, 2>(), w, packing, y.as<T, 2>());
  });
}

void pool_backward(Context& ctx, Pooling kind, ConstTensorView dy, ConstTensorView weight,
                   const Packing& packing, TensorView dx) {
  check("pool_backward", ctx, kind, "dx", dx, weight, packing, "dy", dy);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::pool_backward(ctx, kind, dy, weight, packing, dx);
  }
  visit_real(dx.dtype(), [&]<class T>(Type<T>) {
    const T* w = data_or_null<T>(weight);
    pool_backward_cpu<T>(ctx, kind, dy.as<T, 2>(), w, packing, dx.as<T, 2>());
  });
}

void pool_max(Context& ctx, ConstTensorView x, const Packing& packing, TensorView y,
              TensorView at) {
  const char* op = "pool_max";
  check_rows(op, ctx, "x", x, packing, "y", y);
  ctx.require_here(op, at);
  require_tensor(op, "at", at, y.shape(), DType::i32);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::pool_max(ctx, x, packing, y, at);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    pool_max_cpu<T>(ctx, x.as<T, 2>(), packing, y.as<T, 2>(), at.as<int32_t, 2>());
  });
}

void pool_max_backward(Context& ctx, ConstTensorView dy, ConstTensorView at, const Packing& packing,
                       TensorView dx) {
  const char* op = "pool_max_backward";
  check_rows(op, ctx, "dx", dx, packing, "dy", dy);
  ctx.require_here(op, at);
  require_tensor(op, "at", at, dy.shape(), DType::i32);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::pool_max_backward(ctx, dy, at, packing, dx);
  }
  visit_real(dx.dtype(), [&]<class T>(Type<T>) {
    pool_max_backward_cpu<T>(ctx, dy.as<T, 2>(), at.as<int32_t, 2>(), packing, dx.as<T, 2>());
  });
}

}  // namespace scgraft
