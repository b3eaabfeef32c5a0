// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/embedding_sum.h"
#include "model/device_arrays.h"
#include "model/sites.h"

namespace scgraft {

// Token rows with rows of an adapter among them: `count` rows behind the first token of every cell,
// the same for all cells.
//
//   tokens   [tokens, dim]                 as the batch has them
//   longer   [tokens + cells count, dim]   with the rows in
//
// Every function is a gather from a table of rows that lie one below the other, and its gradient.
class InsertedRows {
 public:
  // For the cells of a packing, which outlives this; nothing happens when count is 0.
  void assign(Context& ctx, const Packing& tokens, int64_t count);

  // Of the longer rows. With dropout, positions in a cell count inserted rows too.
  Packing packing() const;

  // longer = tokens with `rows` [count, dim] put in.
  void insert(Context& ctx, ConstTensorView tokens, ConstTensorView rows, TensorView longer);
  // The same with what was put in before taken out: out = longer with other rows.
  void replace(Context& ctx, ConstTensorView longer, ConstTensorView rows, TensorView out);
  // tokens = longer without them.
  void remove(Context& ctx, ConstTensorView longer, TensorView tokens);

  // Gradients: dtokens (dlonger in place of it) is overwritten, empty where not wanted; drows
  // [count, dim] f32 or f64 is accumulated (+=), cell by cell, empty where not wanted. The rows
  // that replace() took out and remove() left have gradient 0.
  void insert_backward(Context& ctx, ConstTensorView dlonger, TensorView dtokens, TensorView drows);
  void replace_backward(Context& ctx, ConstTensorView dout, TensorView dlonger, TensorView drows);
  void remove_backward(Context& ctx, ConstTensorView dtokens, TensorView dlonger);

 private:
  // One gather: where each row comes from, and for the way back who uses each row of the table.
  struct Gather {
    PreparedArray<int32_t> from, use_offsets, uses;
    void prepare(int64_t table_rows);
    RowUses row_uses() const { return {use_offsets.view(), uses.view()}; }
  };
  void forward(Context& ctx, const Gather& gather, ConstTensorView table, ConstTensorView rows,
               const Packing& produced, TensorView out);
  void backward(Context& ctx, const Gather& gather, ConstTensorView dout, const Packing& produced,
                TensorView dtable, TensorView drows);

  Packing tokens_;
  int64_t count_ = 0;
  PreparedArray<int32_t> offsets_{{0}, {}}, row_cells_;
  Gather insert_, replace_, remove_;
  DeviceArrays memory_;
};

}  // namespace scgraft
