// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <span>
#include <utility>

#include "model/batch.h"
#include "runtime/context.h"

namespace scgraft {

// Tokens of some cells.
struct CellLengths {
  int64_t longest = 0;  // of one cell
  int64_t all = 0;

  CellLengths() = default;
  explicit CellLengths(std::span<const CellView> cells);
};

// Where the run of cells ends that begins at `begin` and has at most `chunk_tokens` tokens (at
// least one cell).
size_t chunk_end(std::span<const CellView> cells, size_t begin, int64_t chunk_tokens);

// Cuts cells into such runs and calls body(batch, begin, end) with the cells' range; the batch is
// on the device of the context.
void for_each_chunk(Context& ctx, std::span<const CellView> cells, int64_t chunk_tokens,
                    TokenBatch& batch,
                    const std::function<void(const TokenBatch&, size_t begin, size_t end)>& body);

// How many tokens are worked on at once, which is what memory depends on. Where memory is short it
// becomes less, for the rest of a run: chunks change no bit of a result, or where they do (decision
// 0010), only its rounding.
class MicroBatch {
 public:
  explicit MicroBatch(int64_t tokens) : tokens_(tokens) {}

  int64_t tokens() const { return tokens_; }

  // What is left to do when a single cell does not fit: `save` makes work() need less memory for
  // the same result and returns true, or returns false when it cannot.
  void set_last_resort(std::function<bool()> save) { last_resort_ = std::move(save); }

  // Calls work(), which runs `cells` in chunks of tokens() and can begin anew. When it runs out of
  // memory, calls it again with half the tokens, down to single cells, and logs a warning
  // (W-MICRO-BATCH); then after the last resort, with another (W-RECOMPUTE); then the error goes to
  // the caller.
  void fit(Context& ctx, std::span<const CellView> cells, const std::function<void()>& work);
  // The same; `lengths` of the cells are looked at when memory was short, so work() may set them.
  void fit(Context& ctx, const CellLengths& lengths, const std::function<void()>& work);

 private:
  int64_t tokens_;
  std::function<bool()> last_resort_;
};

}  // namespace scgraft
