// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/linear_mma.cuh"

// A product of bf16 or f16 with low-rank terms that reads its rows once: from compute capability
// 8.0 on, where a panel of whole rows fits into shared memory.
namespace scgraft::cuda {

// How a low-rank term meets the panel; its second half is LowRankShare, whose u has no memory.
template <class T>
struct PanelTerm {
  Operand<T> first;  // [rank, k]
  DeviceDropout drop;
  int column = 0;  // of u, from which on the term has its ranks
};
template <class T>
struct PanelTerms {
  PanelTerm<T> term[kMostTerms] = {};
  int64_t rank = 0;  // of all terms, each filled up to a multiple of 16
};

inline constexpr int kPanelStep = 64;   // rows of a panel are whole turns through the banks
inline constexpr int kPanelCols = 128;  // of one tile of results
inline constexpr int64_t kMostPanelRank = 64;

template <class T, int kRows>
struct PanelTile
    : MmaTile<T, kRows, kPanelCols, true, true, false, 8 / (kRows / 32)> {  // eight warps
  using Base = MmaTile<T, kRows, kPanelCols, true, true, false, 8 / (kRows / 32)>;
  using Slice = typename Base::ColSlice;
  static_assert(Base::kWarps == 8 && Base::kFragments % 4 == 0);

  T* panel;     // [kRows, width]
  T* w_slices;  // a ring of them
  T* u;         // [kRows, u_width]
  int width;
  int u_width;  // an odd number of chunks, so that eight rows of one chunk lie in different banks

  SCGRAFT_HD PanelTile(gpu::SharedCarver& carver, int64_t k, int64_t rank)
      : width(static_cast<int>(round_up(k, kPanelStep))), u_width(static_cast<int>(rank) + 8) {
    panel = carver.take<T>(kRows * width, 128);
    w_slices = carver.take<T>(Base::kStages * Slice::kElements, 128);
    u = carver.take<T>(kRows * u_width, 128);
  }
  static int64_t shared_bytes(int64_t k, int64_t rank) {
    gpu::SharedCarver carver(nullptr);
    const PanelTile tile(carver, k, rank);
    return carver.used();
  }

  // A chunk of the panel. The permutation takes eight rows of one chunk (ldmatrix) to eight places,
  // and four chunks of two neighbouring rows (a quarter of load_vec in the projection) too.
  __device__ __forceinline__ T* at(int row, int chunk) const {
    return panel + row * width + (chunk ^ ((row & 1) << 2 | (row >> 1 & 3))) * 8;
  }
  __device__ __forceinline__ T* w_slice(int number) const {
    return w_slices + number % Base::kStages * Slice::kElements;
  }
};

// Lane q of four holds columns 2 q, 2 q + 1 of four fragments, in this order; afterwards all eight
// of fragment q.
__device__ __forceinline__ void gather_fragment(float (&v)[8]) {
  UNROLL
  for (int step = 1; step <= 2; ++step) {
    const bool upper = (gpu::lane() & step) != 0;
    UNROLL
    for (int i = 0; i < 8; ++i) {
      if ((i / 2 & step) != 0) continue;
      const float low = v[i], high = v[i + 2 * step];
      const float other = gpu::shuffle_xor(upper ? low : high, step);
      v[i] = upper ? other : low;
      v[i + 2 * step] = upper ? high : other;
    }
  }
}

// y = x w^T (w [n, k]), with the low-rank terms and the rest of the epilogue; the bits of
// project_mma_kernel and linear_mma_kernel one after the other.
//
// A block owns a panel of kRows rows of x and, of the columns, every one or one of `splits` ranges.
// Its eight warps load the panel, compute u = keep(x) first^T of all terms from it in units of 16
// rows by 16 ranks (a mask is drawn once per unit), round u to T in shared memory, and walk over w,
// whose slices arrive two ahead, across the ends of tiles. u is not computed beside the first tile,
// from the same fragments, because its sums would then run over k in another order than those of
// project_mma_kernel, and the tensor cores would round them in another way.
//
// Floor, with r = ranks of all terms: 2 rows (k + n) + 2 n k + 2 r (k + n) bytes and
// 2 rows n k + 2 rows r (k + n) operations. At 76800 x 512 x 512, r = 8, that is 158 MB and 41.5
// GFLOP, 263 FLOP/byte: the two kernels move 79 MB more for the second reading of x, and 5 MB for
// u padded to 16 ranks. That is bound by the tensor cores of 8.0, 8.6, 8.9 and 12.0, which do fewer
// operations per byte, and by memory as much as by them on 9.0. w comes out of the second-level
// cache with kRows operations per byte.
template <class T, int kRows>
__global__ void __launch_bounds__(PanelTile<T, kRows>::kThreads, kRows == 64 ? 2 : 1)
    linear_panel_kernel(Operand<T> x, Operand<T> w, int64_t k, PanelTerms<T> terms, Epilogue<T> e,
                        int64_t splits) {
  using Tile = PanelTile<T, kRows>;
  gpu::SharedCarver carver(gpu::shared_memory());
  const Tile tile(carver, k, terms.rank);
  const int lane = gpu::lane();
  const int64_t row0 = int64_t{blockIdx.x} / splits * kRows;
  const int64_t range = ceil_div(ceil_div(e.n, kPanelCols), splits) * kPanelCols;
  const int64_t first_col = int64_t{blockIdx.x} % splits * range;
  const int64_t stop_col = first_col + range < e.n ? first_col + range : e.n;

  for (int row = gpu::warp(); row < kRows; row += Tile::kWarps) {
    for (int chunk = lane; chunk < tile.width / 8; chunk += gpu::kWarp) {
      const bool valid = row0 + row < x.rows && chunk * 8 < x.cols;
      gpu::cp_async16(tile.at(row, chunk),
                      valid ? x.data + (row0 + row) * x.cols + chunk * 8 : x.data, valid);
    }
  }
  gpu::cp_async_commit();

  MmaLoads<T, typename Tile::Slice, false> loads;
  int started = 0;
  int64_t next_col = first_col, next_k = 0;
  const auto start_slice = [&] {
    if (next_col < stop_col) {
      loads.start(tile.w_slice(started), w, next_col, next_k, w.rows);
      next_k += kMmaDepth;
      if (next_k >= k) next_k = 0, next_col += kPanelCols;
    }
    gpu::cp_async_commit();
    ++started;
  };
  UNROLL
  for (int s = 0; s < Tile::kStages - 1; ++s) start_slice();

  gpu::cp_async_wait<Tile::kStages - 1>();
  gpu::sync_block();
  int owner = 0;
  for (int t = 0; t < e.terms; ++t) {
    const PanelTerm<T>& term = terms.term[t];
    for (int rank = 0; rank < term.first.rows; rank += 16) {
      for (int block = 0; block < kRows / 16; ++block, owner = (owner + 1) % Tile::kWarps) {
        if (owner != gpu::warp()) continue;
        const int row = 16 * block + lane / 4;
        RowPlace place[2] = {};
        UNROLL
        for (int h = 0; h < 2; ++h)
          if (row0 + row + 8 * h < x.rows) place[h] = row_place(term.drop, row0 + row + 8 * h);
        float acc[2][4] = {};
        project_fragments<T, 2, 4, false>(
            term.first, rank, x.cols,
            [&](int h, int64_t col) {
              gpu::U4 chunk{0, 0, 0, 0};
              if (col < x.cols) {
                chunk = gpu::load_vec<gpu::U4>(tile.at(row + 8 * h, static_cast<int>(col / 8)));
                if (term.drop.active) drop_eight(term.drop, place[h], col, chunk);
              }
              return chunk;
            },
            acc);
        UNROLL
        for (int f = 0; f < 2; ++f) {
          UNROLL
          for (int h = 0; h < 2; ++h)
            gpu::store_vec(
                tile.u + (row + 8 * h) * tile.u_width + term.column + rank + 8 * f + lane % 4 * 2,
                gpu::pack2<T>(acc[f][2 * h], acc[f][2 * h + 1]));
        }
      }
    }
  }

  int arrived = 0;
  for (int64_t col0 = first_col; col0 < stop_col; col0 += kPanelCols) {
    typename Tile::Sums acc = {};
    for (int64_t slice_k = 0; slice_k < k; slice_k += kMmaDepth) {
      gpu::cp_async_wait<Tile::kStages - 2>();
      // Everybody's chunks of this slice are there, nobody reads the one before any more, and, the
      // first time, u is complete.
      gpu::sync_block();
      start_slice();
      Tile::multiply_slice(
          [&](int m, int k_in_slice, uint32_t(&a)[4]) {
            gpu::ldmatrix_x4(a,
                             tile.at(Tile::warp_row() + 16 * m + (lane & 15),
                                     static_cast<int>(slice_k) / 8 + k_in_slice / 8 + (lane >> 4)));
          },
          tile.w_slice(arrived++), acc);
    }

    const int64_t warp_col0 = col0 + Tile::warp_col();
    for (int t = 0; t < e.terms; ++t)
      add_share<Tile, T, false>(
          e.term[t], warp_col0, e.n,
          [&](int m, int64_t rank, uint32_t(&a)[4]) {
            gpu::ldmatrix_x4(a, tile.u + (Tile::warp_row() + 16 * m + (lane & 15)) * tile.u_width +
                                    terms.term[t].column + rank + 8 * (lane >> 4));
          },
          [](int, int, float(&)[4]) {}, acc);

    // Eight rows by 32 columns at a time, always those in parts[0]: store_results is long, and is
    // here once.
    constexpr int kAcross = Tile::kFragments / 4;
    constexpr int kParts = 2 * Tile::kBlocks * kAcross;
    float parts[kParts][8];
    UNROLL
    for (int p = 0; p < kParts; ++p) {
      UNROLL
      for (int i = 0; i < 8; ++i)
        parts[p][i] = acc[p / (2 * kAcross)][p % kAcross * 4 + i / 2][p / kAcross % 2 * 2 + i % 2];
    }
    KEEP_LOOP
    for (int p = 0; p < kParts; ++p) {
      gather_fragment(parts[0]);
      const int64_t row = row0 + Tile::warp_row() + p / kAcross * 8 + lane / 4;
      const int64_t col = warp_col0 + p % kAcross * 32 + lane % 4 * 8;
      if (row < e.rows && col < e.n) store_results(e, row, col, parts[0]);
      UNROLL
      for (int next = 1; next < kParts; ++next) {
        UNROLL
        for (int i = 0; i < 8; ++i) parts[next - 1][i] = parts[next][i];
      }
    }
  }
  gpu::cp_async_wait<0>();
}

}  // namespace scgraft::cuda
