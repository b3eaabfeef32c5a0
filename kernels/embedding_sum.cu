// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropout_rows.cuh"
#include "kernels/embedding_sum.h"
#include "kernels/require_tensor.h"

namespace scgraft::cuda {
namespace {

// Features of one span of a row: a warp owns a span, a lane two pieces of it.
constexpr int kPieces = 2;
constexpr int kSpan = kPieces * kWarpPieces;

template <class T>
struct Tables {
  const T* a;
  const int32_t* ia;
  const T* b;  // or null
  const int32_t* ib;
};

// Memory: writes y once and reads the rows of a and b, which for tables that fit the second-level
// cache come from there. Bounded by the stores, or by the loads of a large table.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    embedding_sum_kernel(Tables<T> tables, int64_t tokens, int dim, DeviceDropout drop, T* y) {
  const int64_t token = row_of_warp();
  if (token >= tokens) return;
  const T* a = tables.a + int64_t{tables.ia[token]} * dim;
  const int begin = static_cast<int>(blockIdx.y) * kSpan + gpu::lane() * kPiece;
  float v[kPieces][kPiece];
  UNROLL
  for (int p = 0; p < kPieces; ++p) load_piece<kVectors>(a, begin + p * kWarpPieces, dim, v[p]);
  if (tables.b != nullptr) {
    const T* b = tables.b + int64_t{tables.ib[token]} * dim;
    const RowPlace place = row_place(drop, token);
    float other[kPieces][kPiece];
    UNROLL
    for (int p = 0; p < kPieces; ++p)
      load_piece<kVectors>(b, begin + p * kWarpPieces, dim, other[p]);
    UNROLL
    for (int p = 0; p < kPieces; ++p) {
      if (drop.active) drop_piece(drop, place, begin + p * kWarpPieces, other[p]);
      UNROLL
      for (int i = 0; i < kPiece; ++i) v[p][i] += other[p][i];
    }
  }
  UNROLL
  for (int p = 0; p < kPieces; ++p)
    store_piece<kVectors>(y + token * dim, begin + p * kWarpPieces, dim, v[p]);
}

// A block owns kPanelColumns columns of a table row, its warps the panels of that row's uses.
// Memory: reads each row of dy once, writes dtable once; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads)
    embedding_sum_backward_kernel(const T* dy, const int32_t* offsets, const int32_t* tokens,
                                  int dim, DeviceDropout drop, T* dtable) {
  const int64_t row = blockIdx.x;
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  sum_in_panels<1>(
      offsets[row], offsets[row + 1],
      [&](int64_t use, float(&sum)[1][kLaneColumns]) {
        const int64_t token = tokens[use];
        float v[kLaneColumns];
        load_columns<kVectors>(dy + token * dim, first, dim, v);
        if (drop.active) {
          // Two lanes share the random bits of eight features.
          const PhiloxCounter bits = piece_bits(drop, row_place(drop, token), first);
          const bool upper = first % kPiece != 0;
          UNROLL
          for (int c = 0; c < kLaneColumns; ++c)
            v[c] = upper ? drop_lane(drop, bits, c + kLaneColumns, v[c])
                         : drop_lane(drop, bits, c, v[c]);
        }
        UNROLL
        for (int c = 0; c < kLaneColumns; ++c) sum[0][c] += v[c];
      },
      [&](const float(&total)[1][kLaneColumns]) {
        store_columns<kVectors>(dtable + row * dim, first, dim, total[0]);
      });
}

}  // namespace

void embedding_sum(Context& ctx, ConstTensorView a, ConstTensorView ia, ConstTensorView b,
                   ConstTensorView ib, Dropout dropout, const Packing& packing, TensorView y) {
  constexpr const char* kOp = "embedding_sum";
  const int64_t tokens = y.dim(0);
  const int64_t dim = y.dim(1);
  const RowDropout drop(kOp, ctx, b.empty() ? Dropout{} : dropout, &packing, tokens);
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const Tables<T> tables{.a = a.as<T>(),
                           .ia = ia.as<int32_t>(),
                           .b = data_or_null<T>(b),
                           .ib = data_or_null<int32_t>(ib)};
    const bool vectors = rows_fit_vectors(dim, tables.a, tables.b, y.as<T>());
    launch(ctx, kOp, vectors ? embedding_sum_kernel<T, true> : embedding_sum_kernel<T, false>,
           row_grid(tokens, dim, kSpan), kRowThreads, 0, tables, tokens, static_cast<int>(dim),
           drop.on_device(ctx), y.as<T>());
  });
}

void embedding_sum_backward(Context& ctx, ConstTensorView dy, const RowUses& uses, Dropout dropout,
                            const Packing& packing, TensorView dtable) {
  constexpr const char* kOp = "embedding_sum_backward";
  const int64_t tokens = dy.dim(0);
  const int64_t rows = dtable.dim(0);
  const int64_t dim = dy.dim(1);
  const RowDropout drop(kOp, ctx, dropout, &packing, tokens);
  // A large table has few uses per row: one warp is enough for each, and the bits are the same.
  const int warps = tokens <= rows * kPanelRows ? 1 : kPanelWarps;
  visit_storage(dy.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, dy.as<T>(), dtable.as<T>());
    launch(
        ctx, kOp,
        vectors ? embedding_sum_backward_kernel<T, true> : embedding_sum_backward_kernel<T, false>,
        {.x = rows, .y = ceil_div(dim, kPanelColumns)}, warps * gpu::kWarp,
        panel_shared_bytes<1>(warps), dy.as<T>(), uses.offsets.as<int32_t>(),
        uses.tokens.as<int32_t>(), static_cast<int>(dim), drop.on_device(ctx), dtable.as<T>());
  });
}

}  // namespace scgraft::cuda
