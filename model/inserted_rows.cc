// SPDX-License-Identifier: Apache-2.0
#include "model/inserted_rows.h"

#include "kernels/add.h"
#include "kernels/cast.h"
#include "runtime/error.h"

namespace scgraft {

// A stable counting sort: the users of a row stand in ascending order.
void InsertedRows::Gather::prepare(int64_t table_rows) {
  use_offsets.host.assign(static_cast<size_t>(table_rows) + 1, 0);
  for (const int32_t row : from.host) ++use_offsets.host[static_cast<size_t>(row) + 1];
  for (size_t r = 0; r + 1 < use_offsets.host.size(); ++r)
    use_offsets.host[r + 1] += use_offsets.host[r];
  uses.host.resize(from.host.size());
  std::vector<int32_t> next(use_offsets.host.begin(), use_offsets.host.end() - 1);
  for (size_t t = 0; t < from.host.size(); ++t)
    uses.host[static_cast<size_t>(next[static_cast<size_t>(from.host[t])]++)] =
        static_cast<int32_t>(t);
}

void InsertedRows::assign(Context& ctx, const Packing& tokens, int64_t count) {
  tokens_ = tokens;
  count_ = count;
  if (count == 0) return;
  const auto n = static_cast<int32_t>(tokens.tokens());
  const auto longer = static_cast<int32_t>(n + tokens.cells() * count);
  offsets_.host.assign(1, 0);
  for (auto* array : {&row_cells_, &insert_.from, &replace_.from, &remove_.from})
    array->host.clear();
  for (int64_t cell = 0; cell < tokens.cells(); ++cell) {
    require(tokens.length(cell) > 0, "rows are put behind the first token of a cell, and cell ",
            cell, " of the batch has none");
    for (int64_t i = 0; i < tokens.length(cell) + count; ++i) {
      const auto here = static_cast<int32_t>(row_cells_.host.size());
      const bool put_in = i >= 1 && i <= count;
      const auto which = static_cast<int32_t>(i - 1);
      insert_.from.host.push_back(
          put_in ? n + which : static_cast<int32_t>(tokens.begin(cell) + (i == 0 ? 0 : i - count)));
      replace_.from.host.push_back(put_in ? longer + which : here);
      if (!put_in) remove_.from.host.push_back(here);
      row_cells_.host.push_back(static_cast<int32_t>(cell));
    }
    offsets_.host.push_back(static_cast<int32_t>(row_cells_.host.size()));
  }
  insert_.prepare(n + count);
  replace_.prepare(longer + count);
  remove_.prepare(longer);
  memory_.send(ctx, offsets_, row_cells_, insert_.from, insert_.use_offsets, insert_.uses,
               replace_.from, replace_.use_offsets, replace_.uses, remove_.from,
               remove_.use_offsets, remove_.uses);
}

Packing InsertedRows::packing() const {
  Packing p = tokens_;
  p.offsets = offsets_.host;
  p.cu_seqlens = offsets_.view();
  p.row_cells = row_cells_.device;
  return p;
}

void InsertedRows::forward(Context& ctx, const Gather& gather, ConstTensorView table,
                           ConstTensorView rows, const Packing& produced, TensorView out) {
  Arena::Scope scratch(ctx.scratch());
  ConstTensorView from = table;
  if (!rows.empty()) {
    const TensorView both =
        ctx.scratch().take({table.dim(0) + rows.dim(0), table.dim(1)}, table.dtype());
    copy(ctx, table, both.rows(0, table.dim(0)));
    const TensorView below = both.rows(table.dim(0), both.dim(0));
    if (rows.dtype() == table.dtype())
      copy(ctx, rows, below);
    else
      cast(ctx, rows, below);
    from = both;
  }
  embedding_sum(ctx, from, gather.from.view(), {}, {}, {}, produced, out);
}

void InsertedRows::backward(Context& ctx, const Gather& gather, ConstTensorView dout,
                            const Packing& produced, TensorView dtable, TensorView drows) {
  Arena::Scope scratch(ctx.scratch());
  const auto rows = static_cast<int64_t>(gather.use_offsets.host.size()) - 1;
  const TensorView both = ctx.scratch().take({rows, dout.dim(1)}, dout.dtype());
  embedding_sum_backward(ctx, dout, gather.row_uses(), {}, produced, both);
  const int64_t below = rows - (drows.empty() ? 0 : drows.dim(0));
  if (!dtable.empty()) copy(ctx, both.rows(0, dtable.dim(0)), dtable);
  if (drows.empty()) return;
  const TensorView mine = both.rows(below, rows);
  if (drows.dtype() == mine.dtype()) return add(ctx, drows, mine, drows);
  const TensorView wide = ctx.scratch().take(mine.shape(), drows.dtype());
  cast(ctx, mine, wide);
  add(ctx, drows, wide, drows);
}

void InsertedRows::insert(Context& ctx, ConstTensorView tokens, ConstTensorView rows,
                          TensorView longer) {
  forward(ctx, insert_, tokens, rows, packing(), longer);
}
void InsertedRows::replace(Context& ctx, ConstTensorView longer, ConstTensorView rows,
                           TensorView out) {
  forward(ctx, replace_, longer, rows, packing(), out);
}
void InsertedRows::remove(Context& ctx, ConstTensorView longer, TensorView tokens) {
  forward(ctx, remove_, longer, {}, tokens_, tokens);
}
void InsertedRows::insert_backward(Context& ctx, ConstTensorView dlonger, TensorView dtokens,
                                   TensorView drows) {
  backward(ctx, insert_, dlonger, packing(), dtokens, drows);
}
void InsertedRows::replace_backward(Context& ctx, ConstTensorView dout, TensorView dlonger,
                                    TensorView drows) {
  backward(ctx, replace_, dout, packing(), dlonger, drows);
}
void InsertedRows::remove_backward(Context& ctx, ConstTensorView dtokens, TensorView dlonger) {
  backward(ctx, remove_, dtokens, tokens_, dlonger, {});
}

}  // namespace scgraft
