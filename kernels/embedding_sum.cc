// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding_sum.h"

#include <cstring>

#include "kernels/dropout_rows.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

void check_table(const char* op, ConstTensorView table, const char* name, ConstTensorView index,
                 const char* index_name, ConstTensorView tokens) {
  require(table.rank() == 2 && table.dim(1) == tokens.dim(1), op, ": ", name, " must be [rows, ",
          tokens.dim(1), "], got ", table.shape());
  require<TypeError>(table.dtype() == tokens.dtype(), op, ": ", name, " is ", table.dtype(),
                     ", y is ", tokens.dtype(), "; convert one of them first");
  require<TypeError>(index.dtype() == DType::i32, op, ": ", index_name, " must be i32, got ",
                     index.dtype());
  require(index.shape() == Shape{tokens.dim(0)}, op, ": ", index_name, " must be [", tokens.dim(0),
          "], one table row per token, got ", index.shape());
}

template <class T>
struct Tables {
  const T* a;
  const int32_t* ia;
  const T* b;  // or null
  const int32_t* ib;
  int64_t dim;
  const T* row_a(int64_t token) const { return a + ia[token] * dim; }
  const T* row_b(int64_t token) const { return b + ib[token] * dim; }
};

template <class T>
void forward_definition(const Tables<T>& tables, const RowDropout& drop, Array<T, 2> y) {
  for (int64_t t = 0; t < y.dim(0); ++t) {
    const T* a = tables.row_a(t);
    if (tables.b == nullptr) {
      for (int64_t f = 0; f < tables.dim; ++f) y(t, f) = a[f];
      continue;
    }
    const T* b = tables.row_b(t);
    drop.each(
        t, tables.dim, [&](int64_t f) { return b[f]; },
        [&](int64_t f, T dropped) { y(t, f) = a[f] + dropped; });
  }
}

void forward_token(const Tables<float>& tables, const RowDropout& drop, int64_t token, float* y) {
  const float* a = tables.row_a(token);
  if (tables.b == nullptr) {
    std::memcpy(y, a, static_cast<size_t>(tables.dim) * sizeof(float));
    return;
  }
  const float* b = tables.row_b(token);
  if (!drop.active()) {
#pragma omp simd
    for (int64_t f = 0; f < tables.dim; ++f) y[f] = a[f] + b[f];
    return;
  }
  const Keep keep = drop.keep();
  drop.pieces(token, 0, tables.dim, [&](int64_t f, int64_t n, const uint16_t* lanes) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[f + i] = a[f + i] + keep(lanes[i], b[f + i]);
  });
}

template <class T>
void backward_definition(Array<const T, 2> dy, const int32_t* offsets, const int32_t* tokens,
                         const RowDropout& drop, Array<T, 2> dtable) {
  for (int64_t row = 0; row < dtable.dim(0); ++row) {
    T* sum = dtable.row(row);
    for (int64_t f = 0; f < dtable.dim(1); ++f) sum[f] = 0;
    for (int64_t use = offsets[row]; use < offsets[row + 1]; ++use) {
      const int64_t t = tokens[use];
      drop.each(
          t, dtable.dim(1), [&](int64_t f) { return dy(t, f); },
          [&](int64_t f, T dropped) { sum[f] += dropped; });
    }
  }
}

// Features [begin, end) of the gradient of one table row; begin is a multiple of 8.
void backward_slice(Array<const float, 2> dy, const int32_t* tokens, int64_t uses,
                    const RowDropout& drop, int64_t begin, int64_t end, float* sum) {
  std::memset(sum + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  const Keep keep = drop.keep();
  for (int64_t use = 0; use < uses; ++use) {
    const float* row = dy.row(tokens[use]);
    if (drop.active()) {
      drop.pieces(tokens[use], begin, end, [&](int64_t f, int64_t n, const uint16_t* lanes) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) sum[f + i] += keep(lanes[i], row[f + i]);
      });
      continue;
    }
#pragma omp simd
    for (int64_t f = begin; f < end; ++f) sum[f] += row[f];
  }
}

// One unit of work owns a slice of the features of some table rows and adds their uses in token
// order, so neither the slices nor the groups of rows change a bit. Slices are there for tables
// with few rows, of which one may take most of the tokens; groups for tables with many.
void backward_fast(Context& ctx, Array<const float, 2> dy, const int32_t* offsets,
                   const int32_t* tokens, const RowDropout& drop, Array<float, 2> dtable) {
  constexpr int64_t kSlice = 128;
  constexpr int64_t kGroups = 256;
  const int64_t rows = dtable.dim(0);
  const int64_t dim = dtable.dim(1);
  const int64_t group = std::max<int64_t>(1, rows / kGroups);
  const int64_t groups = (rows + group - 1) / group;
  const int64_t slices = (dim + kSlice - 1) / kSlice;
  parallel_for(ctx, groups * slices, [&](int64_t unit) {
    const int64_t begin = unit % slices * kSlice;
    const int64_t end = std::min(begin + kSlice, dim);
    const int64_t first = unit / slices * group;
    for (int64_t row = first; row < std::min(first + group, rows); ++row)
      backward_slice(dy, tokens + offsets[row], offsets[row + 1] - offsets[row], drop, begin, end,
                     dtable.row(row));
  });
}

}  // namespace

void embedding_sum(Context& ctx, ConstTensorView a, ConstTensorView ia, ConstTensorView b,
                   ConstTensorView ib, Dropout dropout, const Packing& packing, TensorView y) {
  constexpr const char* kOp = "embedding_sum";
  ctx.require_here(kOp, a, ia, b, ib, y);
  require(y.rank() == 2, kOp, ": y must be [tokens, dim], got ", y.shape());
  check_table(kOp, a, "a", ia, "ia", y);
  if (!b.empty()) check_table(kOp, b, "b", ib, "ib", y);
  const RowDropout drop(kOp, ctx, b.empty() ? Dropout{} : dropout, &packing, y.dim(0));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::embedding_sum(ctx, a, ia, b, ib, dropout, packing, y);
  }
  visit_real(y.dtype(), [&]<class T>(Type<T>) {
    const Tables<T> tables{a.as<T>(), ia.as<int32_t>(), data_or_null<T>(b),
                           data_or_null<int32_t>(ib), y.dim(1)};
    const auto out = y.as<T, 2>();
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) {
        for_row_panels(ctx, y.dim(0), [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t) forward_token(tables, drop, t, out.row(t));
        });
        return;
      }
    }
    forward_definition<T>(tables, drop, out);
  });
}

void embedding_sum_backward(Context& ctx, ConstTensorView dy, const RowUses& uses, Dropout dropout,
                            const Packing& packing, TensorView dtable) {
  constexpr const char* kOp = "embedding_sum_backward";
  ctx.require_here(kOp, dy, uses.offsets, uses.tokens, dtable);
  require(dy.rank() == 2, kOp, ": dy must be [tokens, dim], got ", dy.shape());
  require(dtable.rank() == 2 && dtable.dim(1) == dy.dim(1), kOp, ": dtable must be [rows, ",
          dy.dim(1), "], got ", dtable.shape());
  require<TypeError>(dtable.dtype() == dy.dtype(), kOp, ": dy is ", dy.dtype(), ", dtable is ",
                     dtable.dtype(), "; convert one of them first");
  require<TypeError>(uses.offsets.dtype() == DType::i32 && uses.tokens.dtype() == DType::i32, kOp,
                     ": uses must be i32, got offsets ", uses.offsets.dtype(), " and tokens ",
                     uses.tokens.dtype());
  require(uses.offsets.shape() == Shape{dtable.dim(0) + 1}, kOp, ": uses.offsets must be [",
          dtable.dim(0) + 1, "], got ", uses.offsets.shape());
  require(uses.tokens.shape() == Shape{dy.dim(0)}, kOp, ": uses.tokens must be [", dy.dim(0),
          "], one entry per token, got ", uses.tokens.shape());
  const RowDropout drop(kOp, ctx, dropout, &packing, dy.dim(0));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::embedding_sum_backward(ctx, dy, uses, dropout, packing, dtable);
  }
  visit_real(dy.dtype(), [&]<class T>(Type<T>) {
    const auto in = dy.as<T, 2>();
    const auto out = dtable.as<T, 2>();
    const int32_t* offsets = uses.offsets.as<int32_t>();
    const int32_t* tokens = uses.tokens.as<int32_t>();
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) return backward_fast(ctx, in, offsets, tokens, drop, out);
    }
    backward_definition<T>(in, offsets, tokens, drop, out);
  });
}

}  // namespace scgraft
