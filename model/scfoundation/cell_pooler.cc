// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/cell_pooler.h"

#include "kernels/add.h"
#include "kernels/embedding_sum.h"
#include "kernels/pool.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr int64_t kParts = 4;
constexpr int64_t kEnds = 2;  // T and S

// y[i] = x[index[i]]
void gather(Context& ctx, ConstTensorView x, const PreparedArray<int32_t>& index, TensorView y) {
  const RowList rows(y.dim(0));
  embedding_sum(ctx, x, index.view(), {}, {}, {}, rows.packing(), y);
}

}  // namespace

void CellPooler::lay_out(Context& ctx, const Packing& packing) {
  const auto cells = static_cast<int32_t>(packing.cells());
  const auto genes = static_cast<int32_t>(packing.tokens() - kEnds * cells);
  for (auto* array : {&genes_, &ends_, &parts_, &places_, &tokens_}) array->host.clear();
  offsets_.assign(1, 0);
  ends_.host.resize(static_cast<size_t>(kEnds * cells));
  places_.host.resize(static_cast<size_t>(kParts * cells));
  for (int32_t cell = 0; cell < cells; ++cell) {
    const auto end = static_cast<int32_t>(packing.end(cell));
    for (auto t = static_cast<int32_t>(packing.begin(cell)); t < end - kEnds; ++t) {
      tokens_.host.push_back(static_cast<int32_t>(genes_.host.size()));
      genes_.host.push_back(t);
    }
    tokens_.host.push_back(genes + cells + cell);  // T
    tokens_.host.push_back(genes + cell);          // S
    ends_.host[static_cast<size_t>(cell)] = end - 1;
    ends_.host[static_cast<size_t>(cells) + static_cast<size_t>(cell)] = end - 2;
    offsets_.push_back(static_cast<int32_t>(genes_.host.size()));
    for (int32_t part = 0; part < kParts; ++part) {
      const int32_t row = part * cells + cell;
      parts_.host.push_back(row);
      places_.host[static_cast<size_t>(row)] = static_cast<int32_t>(kParts) * cell + part;
    }
  }
  memory_.send(ctx, genes_, ends_, parts_, places_, tokens_);
  gene_packing_.assign(ctx, Packing::over(offsets_));
}

void CellPooler::forward(Context& ctx, ConstTensorView x, const Packing& packing, TensorView y) {
  const int64_t cells = packing.cells();
  const int64_t dim = x.dim(1);
  for (int64_t cell = 0; cell < cells; ++cell)
    require<DataError>(packing.length(cell) > kEnds,
                       "scfoundation: a cell has no expressed gene, it has no embedding");
  at_ = ctx.activations().take({cells, dim}, DType::i32);
  if (pooling_ == CellPooling::max) return pool_max(ctx, x, packing, y, at_);
  lay_out(ctx, packing);
  Arena::Scope scratch(ctx.scratch());
  const TensorView genes = scratch.take({static_cast<int64_t>(genes_.host.size()), dim}, x.dtype());
  const TensorView middle = scratch.take({kParts * cells, dim}, x.dtype());
  gather(ctx, x, genes_, genes);
  gather(ctx, x, ends_, middle.rows(0, kEnds * cells));
  pool_max(ctx, genes, gene_packing_.packing(), middle.rows(2 * cells, 3 * cells), at_);
  pool(ctx, Pooling::mean, genes, {}, gene_packing_.packing(),
       middle.rows(3 * cells, kParts * cells));
  gather(ctx, middle, parts_, y.reshape({kParts * cells, dim}));
}

void CellPooler::backward(Context& ctx, ConstTensorView dy, const Packing& packing, TensorView dx) {
  if (pooling_ == CellPooling::max) return pool_max_backward(ctx, dy, at_, packing, dx);
  const int64_t cells = packing.cells();
  const int64_t dim = dx.dim(1);
  const auto genes = static_cast<int64_t>(genes_.host.size());
  Arena::Scope scratch(ctx.scratch());
  const TensorView middle = scratch.take({kParts * cells, dim}, dx.dtype());
  gather(ctx, dy.reshape({kParts * cells, dim}), places_, middle);
  const TensorView tokens = scratch.take(dx.shape(), dx.dtype());
  const TensorView dgenes = tokens.rows(0, genes), dmean = scratch.take(dgenes.shape(), dx.dtype());
  pool_max_backward(ctx, middle.rows(2 * cells, 3 * cells), at_, gene_packing_.packing(), dgenes);
  pool_backward(ctx, Pooling::mean, middle.rows(3 * cells, kParts * cells), {},
                gene_packing_.packing(), dmean);
  add(ctx, dgenes, dmean, dgenes);
  copy(ctx, middle.rows(0, kEnds * cells), tokens.rows(genes, tokens.dim(0)));
  gather(ctx, tokens, tokens_, dx);
}

}  // namespace scgraft
