// SPDX-License-Identifier: Apache-2.0
#include "kernels/packing.h"

#include "runtime/context.h"

namespace scgraft {
namespace {

// Elements of `host` at the start of `memory`, which grows when they do not fit.
ConstTensorView upload(Context& ctx, const ConstTensorView& host, Tensor& memory) {
  if (host.empty() || host.numel() == 0) return {};
  if (memory.empty() || memory.numel() < host.numel() || memory.device() != ctx.device())
    memory = Tensor(host.shape(), host.dtype(), ctx.device());
  const TensorView part = memory.view().rows(0, host.numel());
  copy(ctx, host, part);
  return part;
}

}  // namespace

void DevicePacking::assign(Context& ctx, const Packing& host) {
  packing_ = Packing::over(host.offsets, host.ids);
  if (ctx.device().is_cpu()) return;
  row_cells_.resize(static_cast<size_t>(host.tokens()));
  for (int64_t cell = 0; cell < host.cells(); ++cell)
    std::fill(row_cells_.begin() + host.begin(cell), row_cells_.begin() + host.end(cell),
              static_cast<int32_t>(cell));
  const ConstTensorView cells = view_of(std::as_const(row_cells_).data(), Shape{host.tokens()});
  packing_.cu_seqlens = upload(ctx, packing_.cu_seqlens, offsets_memory_);
  packing_.cell_ids = upload(ctx, packing_.cell_ids, ids_memory_);
  packing_.row_cells = upload(ctx, cells, cells_memory_);
}

PackedRows packed_rows(const char* op, const Context& ctx, const Packing& packing) {
  ctx.require_here(op, packing.cu_seqlens, packing.cell_ids, packing.row_cells);
  require(!packing.offsets.empty(), op, ": the packing has no offsets; it needs at least [0]");
  require(packing.tokens() == 0 ||
              (!packing.row_cells.empty() && packing.row_cells.numel() == packing.tokens()),
          op, ": the packing has no index of the cell of each row; DevicePacking makes it");
  PackedRows rows{.cells = packing.cells(), .tokens = packing.tokens()};
  rows.offsets = packing.cu_seqlens.as<int32_t>();
  if (!packing.cell_ids.empty()) rows.ids = packing.cell_ids.as<int64_t>();
  if (rows.tokens > 0) rows.row_cells = packing.row_cells.as<int32_t>();
  return rows;
}

}  // namespace scgraft
