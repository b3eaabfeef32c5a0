// SPDX-License-Identifier: Apache-2.0
#include "training/micro_batch.h"

#include <algorithm>

#include "runtime/log.h"
#include "runtime/out_of_memory.h"

namespace scgraft {
namespace {

int64_t length(const CellView& cell) { return static_cast<int64_t>(cell.genes.size()); }

}  // namespace

CellLengths::CellLengths(std::span<const CellView> cells) {
  for (const CellView& cell : cells) {
    longest = std::max(longest, length(cell));
    all += length(cell);
  }
}

size_t chunk_end(std::span<const CellView> cells, size_t begin, int64_t chunk_tokens) {
  size_t end = begin;
  int64_t tokens = 0;
  do {
    tokens += length(cells[end++]);
  } while (end < cells.size() && tokens + length(cells[end]) <= chunk_tokens);
  return end;
}

void for_each_chunk(Context& ctx, std::span<const CellView> cells, int64_t chunk_tokens,
                    TokenBatch& batch,
                    const std::function<void(const TokenBatch&, size_t, size_t)>& body) {
  for (size_t begin = 0; begin < cells.size();) {
    const size_t end = chunk_end(cells, begin, chunk_tokens);
    batch.assign(ctx, cells.subspan(begin, end - begin));
    body(batch, begin, end);
    begin = end;
  }
}

void MicroBatch::fit(Context& ctx, std::span<const CellView> cells,
                     const std::function<void()>& work) {
  fit(ctx, CellLengths(cells), work);
}

void MicroBatch::fit(Context& ctx, const CellLengths& lengths, const std::function<void()>& work) {
  for (;;) {
    try {
      return work();
    } catch (const Error& error) {
      if (!is_out_of_memory(error)) throw;
      const int64_t most = std::min(tokens_, lengths.all);
      const bool smaller = most > lengths.longest;
      if (!smaller && !(last_resort_ && last_resort_())) throw;
      if (smaller) tokens_ = std::max(lengths.longest, most / 2);
      ctx.synchronize();
      ctx.activations().trim();
      ctx.scratch().trim();
      if (smaller)
        log_warning("W-MICRO-BATCH", error.what(), ". Going on with ", tokens_,
                    " tokens at once in place of ", most);
      else
        log_warning("W-RECOMPUTE", error.what(),
                    ". Going on with activations that are computed again in the backward pass");
    }
  }
}

}  // namespace scgraft
