// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/embedding_sum.h"
#include "kernels/packing.h"

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

  Packing packing() const { return Packing::over(offsets_, ids_); }
  // One row per cell, for what is left of a cell after pooling.
  Packing cell_rows() const { return Packing::over(cell_offsets_, ids_); }
  int64_t cells() const { return static_cast<int64_t>(ids_.size()); }
  int64_t tokens() const { return offsets_.back(); }

  ConstTensorView unique_genes() const { return vector_view(unique_genes_); }    // [genes] i32 ids
  ConstTensorView unique_values() const { return vector_view(unique_values_); }  // [values] f32
  ConstTensorView gene_index() const { return vector_view(gene_index_); }        // [tokens] i32
  ConstTensorView value_index() const { return vector_view(value_index_); }      // [tokens] i32
  RowUses gene_uses() const;                                         // tokens by unique gene
  RowUses value_uses() const;                                        // tokens by unique value
  ConstTensorView values() const { return vector_view(values_); }    // [tokens] f32
  ConstTensorView targets() const { return vector_view(targets_); }  // [tokens] f32 or empty
  ConstTensorView masked() const { return vector_view(masked_); }    // [tokens] u8 or empty
  ConstTensorView labels() const { return vector_view(labels_); }    // [cells] i32

 private:
  template <class T>
  static ConstTensorView vector_view(const std::vector<T>& v) {
    return view_of(v.data(), Shape{static_cast<int64_t>(v.size())});
  }

  std::vector<int32_t> offsets_ = {0};
  std::vector<int32_t> cell_offsets_ = {0};
  std::vector<int64_t> ids_;
  std::vector<int32_t> labels_;
  std::vector<int32_t> unique_genes_, gene_index_, gene_use_offsets_, gene_use_tokens_;
  std::vector<float> unique_values_;
  std::vector<int32_t> value_index_, value_use_offsets_, value_use_tokens_;
  std::vector<float> values_, targets_;
  std::vector<uint8_t> masked_;
};

}  // namespace scgraft
