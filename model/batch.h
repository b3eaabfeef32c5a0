// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/embedding_sum.h"
#include "kernels/packing.h"
#include "model/device_arrays.h"

namespace scgraft {

// The tokens of one cell on their way into a batch: views into whatever holds them.
struct CellView {
  int64_t cell = 0;                      // number in its data set
  std::span<const int32_t> genes;        // [length] token ids, <cls> first
  std::span<const float> values;         // [length] what the network sees
  std::span<const float> targets = {};   // [length] true values, or empty
  std::span<const uint8_t> masked = {};  // [length] 1 where the value was hidden, or empty
  int32_t label = -1;                    // class, -1: none
};

// Several cells, packed, with the distinct genes and values listed once: row-wise functions of a
// gene or of a value (embedding norms, the value network) run on the lists, not on the tokens.
class TokenBatch {
 public:
  // Replaces the content. Buffers are kept, so that steady-state batches allocate nothing.
  void assign(std::span<const CellView> cells);
  // The same, for operations in this context: packed on the host, then sent to its device in one
  // copy.
  void assign(Context& ctx, std::span<const CellView> cells);

  // assign() in two parts, so that batches of a CUDA device come ahead of the work on them.
  // Packs the cells; needs no context and may run on another thread.
  void prepare(Device device, std::span<const CellView> cells);
  // Copies what was prepared in the order of the stream `copies`, behind the work on the batch that
  // was here before; the work of the context that is enqueued from now on starts after the copy.
  void send(Context& ctx, const Stream& copies);
  // Ends the work of the context on this batch: the next send() waits for what is enqueued by now.
  void release(Context& ctx);
  // Memory on the device, for batches of at most so many cells and tokens.
  void reserve(Context& ctx, int64_t cells, int64_t tokens);

  Packing packing() const { return packed(offsets_, &ids_, row_cells_.device); }
  // One row per cell, for what is left of a cell after pooling.
  Packing cell_rows() const;
  // One row per unique gene or value, as one cell without a number.
  Packing gene_rows() const { return packed(gene_offsets_, nullptr, zeros(unique_genes_)); }
  Packing value_rows() const { return packed(value_offsets_, nullptr, zeros(unique_values_)); }
  int64_t cells() const { return static_cast<int64_t>(ids_.host.size()); }
  int64_t tokens() const { return offsets_.host.back(); }

  ConstTensorView unique_genes() const { return unique_genes_.view(); }    // [genes] i32 ids
  ConstTensorView unique_values() const { return unique_values_.view(); }  // [values] f32
  ConstTensorView gene_index() const { return gene_index_.view(); }        // [tokens] i32
  ConstTensorView value_index() const { return value_index_.view(); }      // [tokens] i32
  RowUses gene_uses() const;                                               // tokens by unique gene
  RowUses value_uses() const;                                              // tokens by unique value
  ConstTensorView values() const { return values_.view(); }                // [tokens] f32
  ConstTensorView targets() const { return targets_.view(); }              // [tokens] f32 or empty
  ConstTensorView masked() const { return masked_.view(); }                // [tokens] u8 or empty
  ConstTensorView labels() const { return labels_.view(); }                // [cells] i32

  // The same numbers in host memory, whatever the device.
  std::span<const int32_t> host_unique_genes() const { return unique_genes_.host; }
  std::span<const float> host_unique_values() const { return unique_values_.host; }
  std::span<const int32_t> host_value_index() const { return value_index_.host; }
  // The id of a token.
  int32_t host_gene(int64_t token) const {
    return unique_genes_.host[static_cast<size_t>(gene_index_.host[static_cast<size_t>(token)])];
  }
  std::span<const float> host_targets() const { return targets_.host; }
  std::span<const uint8_t> host_masked() const { return masked_.host; }
  std::span<const int32_t> host_labels() const { return labels_.host; }

 private:
  // assign() on the host, with what kernels want beside it.
  void pack(Device device, std::span<const CellView> cells);
  static Packing packed(const PreparedArray<int32_t>& offsets, const PreparedArray<int64_t>* ids,
                        ConstTensorView row_cells);
  // As many zeros as the array has rows: their one cell. Empty on the CPU.
  template <class T>
  ConstTensorView zeros(const PreparedArray<T>& rows) const {
    return zeros_.device.empty() ? ConstTensorView()
                                 : zeros_.device.rows(0, static_cast<int64_t>(rows.host.size()));
  }

  PreparedArray<int32_t> offsets_{{0}, {}};
  PreparedArray<int32_t> cell_offsets_{{0}, {}};
  PreparedArray<int32_t> gene_offsets_{{0, 0}, {}}, value_offsets_{{0, 0}, {}};
  PreparedArray<int32_t> row_cells_, zeros_;  // used on a device only
  PreparedArray<int64_t> ids_;
  PreparedArray<int32_t> labels_;
  PreparedArray<int32_t> unique_genes_, gene_index_, gene_use_offsets_, gene_use_tokens_;
  PreparedArray<float> unique_values_;
  PreparedArray<int32_t> value_index_, value_use_offsets_, value_use_tokens_;
  PreparedArray<float> values_, targets_;
  PreparedArray<uint8_t> masked_;
  // All arrays, in the order in which they lie on the device.
  template <class F>
  void with_arrays(F f) {
    f(ids_, offsets_, cell_offsets_, gene_offsets_, value_offsets_, row_cells_, zeros_, labels_,
      unique_genes_, gene_index_, gene_use_offsets_, gene_use_tokens_, unique_values_, value_index_,
      value_use_offsets_, value_use_tokens_, values_, targets_, masked_);
  }

  DeviceArrays memory_;
  std::optional<Event> sent_, used_;
};

}  // namespace scgraft
