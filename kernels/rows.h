// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/packing.h"
#include "runtime/array.h"
#include "runtime/parallel.h"

// How work on rows is cut into units that run in parallel. A unit owns what it writes, and where
// rows are summed the order is fixed here, so that nothing depends on the number of threads.
namespace scgraft {

// Calls body(begin, end) for pieces of [0, rows) of at most `piece` rows, in parallel. For
// operations whose rows do not touch each other; cells may share a piece.
template <class Body>
void for_row_panels(Context& ctx, int64_t rows, Body&& body, int64_t piece = kPanelRows) {
  parallel_for(ctx, (rows + piece - 1) / piece, [&](int64_t panel) {
    const int64_t begin = panel * piece;
    body(begin, std::min(begin + piece, rows));
  });
}

// The same for the elements of element-wise operations.
template <class Body>
void for_element_blocks(Context& ctx, int64_t n, Body&& body) {
  constexpr int64_t kElements = 16384;
  for_row_panels(ctx, n, body, kElements);
}

// Calls body(cell, begin, end) for runs of tokens that cover every token once; a run is at most
// kPanelRows tokens of one cell. For work where every token owns its result: where a cell is cut
// depends on its neighbours in the batch, so nothing may be summed over a run.
template <class Body>
void for_each_run(Context& ctx, const Packing& packing, Body&& body) {
  for_row_panels(ctx, packing.tokens(), [&](int64_t token, int64_t stop) {
    for (int64_t cell = packing.cell_of(token); token < stop; ++cell) {
      const int64_t end = std::min(stop, packing.end(cell));
      if (token < end) body(cell, token, end);
      token = std::max(token, end);
    }
  });
}

// y[b] = sum over the tokens t of cell b of weight(t) * x[t]: kPanelRows tokens at a time, then the
// panels in order. Overwrites y; a cell without tokens gets zeros.
//   x [tokens, dim], y [cells, dim]
template <class T, class Weight>
void sum_cell_rows(Context& ctx, const Packing& packing, Array<const T, 2> x, Weight&& weight,
                   Array<T, 2> y) {
  // A unit of work owns some columns of a cell, so that one long cell keeps several threads busy.
  constexpr int64_t kColumns = 256;
  const int64_t dim = x.dim(1);
  const int64_t blocks = (dim + kColumns - 1) / kColumns;
  parallel_for(ctx, packing.cells() * blocks, [&](int64_t unit) {
    const int64_t cell = unit / blocks;
    const int64_t first = unit % blocks * kColumns;
    const int64_t width = std::min(kColumns, dim - first);
    T total[kColumns] = {};
    for (int64_t begin = packing.begin(cell); begin < packing.end(cell); begin += kPanelRows) {
      T part[kColumns] = {};
      const int64_t end = std::min(packing.end(cell), begin + kPanelRows);
      for (int64_t t = begin; t < end; ++t) {
        const T* row = x.row(t) + first;
        const T w = weight(t);
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) part[c] += w * row[c];
      }
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) total[c] += part[c];
    }
    std::copy_n(total, width, y.row(cell) + first);
  });
}

}  // namespace scgraft
