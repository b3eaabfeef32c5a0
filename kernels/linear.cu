// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <type_traits>

#include "kernels/linear.h"
#include "kernels/linear_f32.cuh"
#include "kernels/linear_mma.cuh"
#include "kernels/linear_operands.cuh"
#include "kernels/linear_panel.cuh"
#include "kernels/relu_dropout.h"
#include "kernels/require_tensor.h"
#include "runtime/gpu/driver.h"
#include "runtime/gpu/library_products.h"
#include "runtime/launch_check.h"

namespace scgraft::cuda {
namespace {

constexpr int kSumThreads = 256;

// Where an ordered sum of pieces goes: c[j, k] lies at j * row_step + k * col_step.
struct Sum {
  float* c;
  int64_t rows;
  int64_t n;
  int64_t row_step;
  int64_t col_step;
  float scale;
};

// c[j, k] += scale * (the sum over the pieces of a cell, in order), for one cell after another.
//   partial [pieces.count(), partial_rows, partial_cols], at least [.., rows, n]
// A thread owns one element of c. Bound by memory: reads every partial once.
__global__ void __launch_bounds__(kSumThreads)
    sum_pieces_kernel(const float* partial, int64_t partial_rows, int64_t partial_cols,
                      Pieces pieces, Sum sum) {
  const int64_t element = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (element >= sum.rows * sum.n) return;
  const int64_t j = element / sum.n;
  const int64_t k = element % sum.n;
  float* c = sum.c + j * sum.row_step + k * sum.col_step;
  float total = *c;
  for (int64_t cell = 0; cell < pieces.cells; ++cell) {
    float of_cell = 0;
    for (int64_t p = 0; p < pieces.per_cell; ++p) {
      const int64_t piece = cell * pieces.per_cell + p;
      const PieceRows rows = pieces.rows(piece);
      if (rows.begin >= rows.end) break;
      of_cell += partial[(piece * partial_rows + j) * partial_cols + k];
    }
    total += sum.scale * of_cell;
  }
  *c = total;
}

constexpr int kColumnThreads = 128;

// partial[piece, k] = sum over the rows of a piece, in order, of x[r, k]. A thread owns a column.
// Bound by memory: reads x once.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    sum_columns_kernel(const T* x, int64_t n, Pieces pieces, float* partial) {
  const int64_t tiles = ceil_div(n, kColumnThreads);
  const int64_t piece = int64_t{blockIdx.x} / tiles;
  const int64_t k = int64_t{blockIdx.x} % tiles * kColumnThreads + threadIdx.x;
  const PieceRows rows = pieces.rows(piece);
  if (k >= n || rows.begin >= rows.end) return;
  float sum = 0;
  for (int64_t r = rows.begin; r < rows.end; ++r) sum += gpu::to_f32(x[r * n + k]);
  partial[piece * n + k] = sum;
}

// What one call works with.
struct Call {
  Context& ctx;
  const char* op;
  Arena::Scope scratch;
  bool turing;  // tensor cores of compute capability 7.5

  Call(Context& context, const char* name)
      : ctx(context),
        op(name),
        scratch(context.scratch()),
        turing(gpu::compute_capability(context.device()) < 80) {}
};

// Throws DeviceError when the device cannot multiply T.
template <class T>
void require_tensor_cores(const Call& call) {
  require<DeviceError>(!(call.turing && std::is_same_v<T, bf16>), call.op,
                       ": this GPU has compute capability 7.5 and does not multiply bf16; use f16");
}

void copy_operand(Context& ctx, const char* op, ConstTensorView from, bool transposed,
                  TensorView to) {
  visit_storage(from.dtype(), [&]<class From>(Type<From>) {
    visit_storage(to.dtype(), [&]<class To>(Type<To>) {
      launch(ctx, op, copy_operand_kernel<From, To>, {.x = ceil_div(to.numel(), 4 * kCopyThreads)},
             kCopyThreads, 0, from.as<From>(), from.dim(0), from.dim(1), transposed, to.as<To>(),
             to.dim(0), to.dim(1));
    });
  });
}

struct OperandOptions {
  bool transposed = false;
  int64_t row_step = 1;  // rows and columns are filled up with zeros to a multiple of these
  int64_t col_step = 1;
};

// A matrix as kernels want it: itself when it fits, else a copy.
template <class T>
Operand<T> operand(Call& call, ConstTensorView m, OperandOptions options = {}) {
  const int64_t rows = round_up(m.dim(options.transposed ? 1 : 0), options.row_step);
  const int64_t cols = m.dim(options.transposed ? 0 : 1);
  const bool fits = !options.transposed && m.dtype() == DTypeOf<T>::value && rows == m.dim(0) &&
                    cols % std::max<int64_t>(options.col_step, Operand<T>::kChunk) == 0 &&
                    reinterpret_cast<uintptr_t>(m.data()) % 16 == 0;
  if (fits) return {m.as<T>(), rows, cols};
  const Shape shape{rows, round_up(cols, std::max<int64_t>(options.col_step, kColumnStep))};
  TensorView copy = call.scratch.take(shape, DTypeOf<T>::value);
  copy_operand(call.ctx, call.op, m, options.transposed, copy);
  return {copy.as<T>(), copy.dim(0), copy.dim(1)};
}

// Ranks are filled up with zeros: to whole chunks in f32, to whole fragments in 16 bits.
template <class T>
constexpr int64_t kRankStep = std::is_same_v<T, float> ? 4 : 16;

// The factor [rank, k] of a term that meets the rows first. Forward that is a, backward b^T.
template <class T>
Operand<T> first_factor(Call& call, const LowRank& term, bool backward) {
  return operand<T>(call, backward ? term.b : term.a,
                    {.transposed = backward, .row_step = kRankStep<T>});
}

// u = keep(rows first^T) [rows, rank].
template <class T>
Operand<T> project(Call& call, const Operand<T>& x, const Operand<T>& first,
                   const DeviceDropout& drop) {
  TensorView to = call.scratch.take(Shape{x.rows, first.rows}, DTypeOf<T>::value);
  T* u = to.as<T>();
  if constexpr (std::is_same_v<T, float>) {
    constexpr int kRows = 128, kCols = 16, kDepth = 8;
    const Epilogue<float> e{.y = u, .rows = x.rows, .n = first.rows};
    launch(call.ctx, call.op, linear_f32_kernel<kRows, kCols, kDepth, true, true>,
           {.x = ceil_div(x.rows, kRows) * ceil_div(first.rows, kCols)}, kF32Threads,
           F32Tile<kRows, kCols, kDepth>::shared_bytes(), x, first, x.cols, drop, e);
  } else {
    const auto run = [&]<int kFragments>(std::integral_constant<int, kFragments>) {
      const gpu::Grid grid{.x = ceil_div(x.rows, kProjectWarps * 16),
                           .y = ceil_div(first.rows, kFragments * 8)};
      if constexpr (std::is_same_v<T, f16>) {
        if (call.turing)
          return launch(call.ctx, call.op, project_mma_kernel<T, kFragments, true>, grid,
                        kProjectThreads, 0, x, first, drop, u);
      }
      launch(call.ctx, call.op, project_mma_kernel<T, kFragments, false>, grid, kProjectThreads, 0,
             x, first, drop, u);
    };
    if (first.rows <= 16)
      run(std::integral_constant<int, 2>{});
    else
      run(std::integral_constant<int, 8>{});
  }
  return {u, to.dim(0), to.dim(1)};
}

// From this many large tiles on a device is busy; fewer are cut into small ones. The choice does
// not show in the result.
constexpr int64_t kEnoughTiles = 128;
constexpr int kLargeTile = 128;
constexpr int kSmallTile = 64;

template <class T, int kTile, bool kOutIn>
void launch_product(Call& call, const Operand<T>& x, const Operand<T>& w, int64_t k,
                    const Epilogue<T>& e) {
  const gpu::Grid grid{.x = ceil_div(e.rows, kTile) * ceil_div(e.n, kTile)};
  if constexpr (std::is_same_v<T, float>) {
    constexpr int kDepth = kTile == kLargeTile ? 8 : 16;
    launch(call.ctx, call.op, linear_f32_kernel<kTile, kTile, kDepth, kOutIn, false>, grid,
           kF32Threads, F32Tile<kTile, kTile, kDepth>::shared_bytes(), x, w, k, DeviceDropout{}, e);
  } else {
    const auto run = [&]<bool kTuring>(std::bool_constant<kTuring>) {
      using Tile = LinearTile<T, kTile, kTile, kOutIn, kTuring>;
      launch(call.ctx, call.op, linear_mma_kernel<T, kTile, kTile, kOutIn, kTuring>, grid,
             Tile::kThreads, Tile::shared_bytes(), x, w, k, e);
    };
    if constexpr (std::is_same_v<T, f16>) {
      if (call.turing) return run(std::true_type{});
    }
    run(std::false_type{});
  }
}

// Bytes of shared memory of a panel and what goes with it.
int64_t panel_bytes(int64_t panel, int64_t in, int64_t rank) {
  constexpr int kStages = PanelTile<bf16, 64>::kStages;
  return 2 *
         (panel * round_up(in, kPanelStep) + kStages * kPanelCols * kMmaDepth + panel * (rank + 8));
}

// Rows of the panel that a forward product takes; 0: none.
template <class T>
int panel_of(const Call& call, LowRankPath path, const Operand<T>& x, int64_t in, int64_t rank) {
  if (rank == 0 || path == LowRankPath::split) return 0;
  if (path == LowRankPath::panel64) return 64;
  if (path == LowRankPath::panel128) return 128;
  return panel_rows(x.rows, in, rank, DTypeOf<T>::value, gpu::compute_capability(call.ctx.device()),
                    gpu::shared_memory_limit(call.ctx.device()));
}

template <class T, int kRows>
void launch_panel(Call& call, const Operand<T>& x, const Operand<T>& w, int64_t k,
                  const PanelTerms<T>& terms, const Epilogue<T>& e) {
  using Tile = PanelTile<T, kRows>;
  // Where there are too few panels, several blocks load the same one and share its columns.
  const int64_t panels = ceil_div(e.rows, kRows);
  const int64_t tiles = ceil_div(e.n, kPanelCols);
  if (panels == 0 || tiles == 0) return;
  const int64_t wanted = std::clamp<int64_t>(ceil_div(kEnoughTiles, panels), 1, tiles);
  const int64_t splits = ceil_div(tiles, ceil_div(tiles, wanted));
  launch(call.ctx, call.op, linear_panel_kernel<T, kRows>, {.x = panels * splits}, Tile::kThreads,
         Tile::shared_bytes(k, terms.rank), x, w, k, terms, e, splits);
}

// The product by cuBLASLt, with as much of the rest as it does: a bias of the type of y, the old y,
// and a residual when nothing comes between. What is left over stays in `e`, to be added to y by a
// product of no depth; y is rounded in between. Returns whether nothing is left.
template <class T>
bool multiply_by_library(Call& call, gpu::LibraryProducts& library, const Operand<T>& x,
                         const Operand<T>& w, int64_t k, bool backward, Epilogue<T>& e) {
  const DType result = e.y_is_f32 ? DType::f32 : DTypeOf<T>::value;
  const bool adds_bias = e.bias != nullptr && e.bias_is_f32 == e.y_is_f32;
  const bool ends = e.terms == 0 && !e.gelu && !e.relu && (e.bias == nullptr || adds_bias);
  if (!ends && e.residual == e.y) {
    const TensorView kept = call.scratch.take(Shape{e.rows, e.n}, result);
    copy(call.ctx, ConstTensorView(e.y, kept.shape(), result, call.ctx.device()), kept);
    e.residual = kept.data();
  }
  const void* c = e.accumulate ? e.y : (ends ? e.residual : nullptr);
  const gpu::LibraryProduct product{.type = DTypeOf<T>::value,
                                    .result = result,
                                    .rows = e.rows,
                                    .n = e.n,
                                    .k = k,
                                    .x_step = x.cols,
                                    .w_step = w.cols,
                                    .w_turned = backward,
                                    .bias = adds_bias,
                                    .aligned = e.vectors};
  try {
    const TensorView workspace =
        call.scratch.take(Shape{gpu::LibraryProducts::kWorkspaceBytes}, DType::u8);
    const gpu::LibraryProducts::Operands operands{.x = x.data,
                                                  .w = w.data,
                                                  .bias = adds_bias ? e.bias : nullptr,
                                                  .c = c,
                                                  .y = e.y,
                                                  .workspace = workspace.data()};
    library.multiply(product, operands, call.ctx.stream().handle());
    if (synchronous_launches()) call.ctx.synchronize();
  } catch (const DeviceError& error) {
    rethrow_naming(call.op, error);
  }
  if (adds_bias) e.bias = nullptr;
  e.accumulate = true;
  return ends;
}

template <class T>
void run_product(Call& call, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                 std::span<const LowRank> terms, const Packing* packing, bool accumulate,
                 TensorView y, const LinearEpilogue& epilogue, LowRankPath path) {
  const bool backward = weight.use() == PackedFor::backward_input;
  gpu::LibraryProducts* library = call.ctx.library_products();
  const ConstTensorView matrix = weight.matrix();
  const Operand<T> w{matrix.as<T>(), matrix.dim(0), matrix.dim(1)};
  const Operand<T> rows = operand<T>(call, x);
  Epilogue<T> e{.y = y.data(),
                .bias = bias.data(),
                .pre = epilogue.pre.data(),
                .residual = epilogue.residual.data(),
                .rows = y.dim(0),
                .n = y.dim(1),
                .y_is_f32 = y.dtype() == DType::f32,
                .bias_is_f32 = !bias.empty() && bias.dtype() == DType::f32,
                .accumulate = accumulate,
                .gelu = epilogue.gelu,
                .relu = epilogue.relu && !std::is_same_v<T, float>,
                .bits = epilogue.bits.empty() ? nullptr : epilogue.bits.as<uint8_t>(),
                .vectors = rows_fit_vectors(y.dim(1), static_cast<const void*>(y.data()),
                                            static_cast<const void*>(epilogue.pre.data()),
                                            epilogue.residual.data())};
  if (e.relu)
    e.dropout =
        RowDropout(call.op, call.ctx, epilogue.dropout, packing, y.dim(0)).on_device(call.ctx);
  PanelTerms<T> panel_terms;
  for (const LowRank& term : terms) panel_terms.rank += round_up(term.a.dim(0), kRankStep<T>);
  const int panel = backward || library != nullptr || std::is_same_v<T, float>
                        ? 0
                        : panel_of(call, path, rows, weight.in(), panel_terms.rank);
  int column = 0;
  for (const LowRank& term : terms) {
    if (term.a.dim(0) == 0) continue;
    const DeviceDropout drop =
        RowDropout(call.op, call.ctx, term.dropout, packing, x.dim(0)).on_device(call.ctx);
    const Operand<T> first = first_factor<T>(call, term, backward);
    PanelTerm<T>& panel_term = panel_terms.term[e.terms];
    LowRankShare<T>& share = e.term[e.terms++];
    if (panel > 0) {
      panel_term = {first, drop, column};
      column += static_cast<int>(first.rows);
      share.u = {nullptr, rows.rows, first.rows};
    } else {
      share.u = project(call, rows, first, backward ? DeviceDropout{} : drop);
    }
    // f32 wants [rank, n], 16 bits [n, rank]; a is [rank, n] backward, b is [n, rank] forward.
    constexpr bool kRankFirst = std::is_same_v<T, float>;
    share.second = operand<T>(
        call, backward ? term.a : term.b,
        {.transposed = backward != kRankFirst, .col_step = kRankFirst ? int64_t{1} : kRankStep<T>});
    share.scale = static_cast<float>(term.scale) * drop.scale;
    if (backward) share.drop = drop;
  }
  int64_t depth = weight.in();
  if constexpr (!std::is_same_v<T, float>) {
    if (panel == 64) return launch_panel<T, 64>(call, rows, w, depth, panel_terms, e);
    if (panel == 128) return launch_panel<T, 128>(call, rows, w, depth, panel_terms, e);
  }
  if (library != nullptr && e.rows > 0) {
    if (multiply_by_library<T>(call, *library, rows, w, depth, backward, e)) return;
    depth = 0;
  }
  const auto run = [&]<bool kOutIn>(std::bool_constant<kOutIn>) {
    if (ceil_div(e.rows, kLargeTile) * ceil_div(e.n, kLargeTile) >= kEnoughTiles)
      launch_product<T, kLargeTile, kOutIn>(call, rows, w, depth, e);
    else
      launch_product<T, kSmallTile, kOutIn>(call, rows, w, depth, e);
  };
  if (backward)
    run(std::false_type{});
  else
    run(std::true_type{});
}

void run(const char* op, Context& ctx, ConstTensorView x, const PackedWeight& weight,
         ConstTensorView bias, std::span<const LowRank> terms, const Packing* packing,
         bool accumulate, TensorView y, const LinearEpilogue& epilogue = {},
         LowRankPath path = LowRankPath::chosen) {
  const DType product = weight.matrix().dtype();
  require<TypeError>(x.dtype() == product || x.dtype() == DType::f32, op, ": rows are ", x.dtype(),
                     ", the weight is packed as ", product, "; pack it as ", x.dtype());
  require<ConfigError>(terms.size() <= kMostTerms, op, ": at most ", kMostTerms,
                       " low-rank terms fit a launch, got ", terms.size());
  Call call(ctx, op);
  visit_storage(product, [&]<class T>(Type<T>) {
    require_tensor_cores<T>(call);
    run_product<T>(call, x, weight, bias, terms, packing, accumulate, y, epilogue, path);
  });
  if (epilogue.relu && product == DType::f32)
    cuda::relu_dropout(ctx, y, epilogue.dropout, packing, y, epilogue.bits);
}

// Partial sums of one launch; batches that need more are summed in several launches.
constexpr int64_t kPartialBytes = int64_t{16} << 20;
// Rows of one piece. A large product has blocks enough in one cell, and needs no more partial sums
// than one per cell.
constexpr int64_t kPieceRows = 512;
constexpr int64_t kWholeCell = int64_t{1} << 40;
constexpr int64_t kLargeProduct = int64_t{1} << 18;

// Calls add(pieces, partial) for groups of cells in order, and adds its partial sums
// [piece, rows, cols] to `sum`.
template <class Add>
void sum_by_cell(Call& call, const Packing& packing, int64_t rows, int64_t cols, Sum sum,
                 Add&& add) {
  Pieces pieces{.offsets = packed_rows(call.op, call.ctx, packing).offsets};
  pieces.length = rows * cols >= kLargeProduct ? kWholeCell : kPieceRows;
  int64_t longest = 0;
  for (int64_t b = 0; b < packing.cells(); ++b) longest = std::max(longest, packing.length(b));
  pieces.per_cell = ceil_div(longest, pieces.length);
  if (pieces.per_cell == 0) return;
  const int64_t cell_bytes = pieces.per_cell * rows * cols * size_of(DType::f32);
  const int64_t group =
      std::clamp<int64_t>(kPartialBytes / std::max<int64_t>(cell_bytes, 1), 1, packing.cells());
  float* partial =
      call.scratch.take(Shape{group * pieces.per_cell, rows, cols}, DType::f32).as<float>();
  for (pieces.first_cell = 0; pieces.first_cell < packing.cells(); pieces.first_cell += group) {
    pieces.cells = std::min(group, packing.cells() - pieces.first_cell);
    add(pieces, partial);
    launch(call.ctx, call.op, sum_pieces_kernel, {.x = ceil_div(sum.rows * sum.n, kSumThreads)},
           kSumThreads, 0, partial, rows, cols, pieces, sum);
  }
}

// sum += g^T x, cell by cell.
template <class T>
void outer_by_cell(Call& call, const Operand<T>& g, const Operand<T>& x, const DeviceDropout& drop,
                   const Packing& packing, Sum sum) {
  sum_by_cell(call, packing, g.cols, x.cols, sum, [&](const Pieces& pieces, float* partial) {
    const auto grid = [&](int rows, int cols) {
      return gpu::Grid{.x = pieces.count() * ceil_div(x.cols, cols), .y = ceil_div(g.cols, rows)};
    };
    const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) {
      if constexpr (std::is_same_v<T, float>) {
        constexpr int kCols = 64, kDepth = 16;
        launch(call.ctx, call.op, outer_f32_kernel<kRows, kCols, kDepth>, grid(kRows, kCols),
               kF32Threads, F32Tile<kRows, kCols, kDepth>::shared_bytes(), g, x, drop, pieces,
               partial);
      } else {
        constexpr int kCols = 128;
        const auto with = [&]<bool kTuring>(std::bool_constant<kTuring>) {
          using Tile = OuterTile<T, kRows, kCols, kTuring>;
          launch(call.ctx, call.op, outer_mma_kernel<T, kRows, kCols, kTuring>, grid(kRows, kCols),
                 Tile::kThreads, Tile::shared_bytes(), g, x, drop, pieces, partial);
        };
        if constexpr (std::is_same_v<T, f16>) {
          if (call.turing) return with(std::true_type{});
        }
        with(std::false_type{});
      }
    };
    if (g.cols <= 16)
      run(std::integral_constant<int, 16>{});
    else
      run(std::integral_constant<int, 64>{});
  });
}

}  // namespace

// A panel with its three slices of w and u takes
//
//   2 (panel round_up(in, 64) + 3 * 128 * 32 + panel (rank + 8)) bytes
//
// At in 512 and rank 16 that is 91 KiB for 64 rows and 158 KiB for 128: the first fits every device
// from 8.0 on (99 KiB and more), the second 8.0 and 9.0 (163 and 227 KiB). With 64 rows 99 KiB go
// up to in 576 and rank 16, or in 512 and rank 64; 163 KiB to in 1088 and 227 KiB to 1600, rank 16.
// A panel of 64 rows asks the second-level cache for w as often per operation as tiles of 128 x 128
// do for both operands (64 operations per byte), so it costs nothing that the other path does not
// pay, and saves one reading of x. A panel of 128 rows halves that, once there are enough of them
// to keep a device busy.
int panel_rows(int64_t rows, int64_t in, int64_t rank, DType type, int capability,
               int64_t shared_limit) {
  if (type == DType::f32 || capability < 80 || in == 0 || rank == 0 || rank > kMostPanelRank)
    return 0;
  if (ceil_div(rows, 128) >= kEnoughTiles && panel_bytes(128, in, rank) <= shared_limit) return 128;
  return panel_bytes(64, in, rank) <= shared_limit ? 64 : 0;
}

void copy_weight(Context& ctx, ConstTensorView weight, TensorView to) {
  copy_operand(ctx, "linear", weight, false, to);
}

void linear(Context& ctx, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
            std::span<const LowRank> terms, const Packing* packing, TensorView y,
            const LinearEpilogue& epilogue, LowRankPath path) {
  run("linear", ctx, x, weight, bias, terms, packing, false, y, epilogue, path);
}

void linear_backward_input(Context& ctx, ConstTensorView dy, const PackedWeight& weight,
                           std::span<const LowRank> terms, const Packing* packing, bool accumulate,
                           TensorView dx) {
  run("linear_backward_input", ctx, dy, weight, {}, terms, packing, accumulate, dx);
}

void low_rank_backward(Context& ctx, ConstTensorView x, ConstTensorView dy, const LowRank& term,
                       const Packing& packing, TensorView da, TensorView db) {
  Call call(ctx, "low_rank_backward");
  const int64_t rank = term.a.dim(0);
  if (rank == 0) return;
  const DeviceDropout drop =
      RowDropout(call.op, ctx, term.dropout, &packing, x.dim(0)).on_device(call.ctx);
  const float scale = static_cast<float>(term.scale) * drop.scale;
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    require_tensor_cores<T>(call);
    const Operand<T> rows = operand<T>(call, x);
    const Operand<T> drows = operand<T>(call, dy);
    if (!da.empty()) {
      const Operand<T> g = project(call, drows, first_factor<T>(call, term, true), {});
      outer_by_cell(call, g, rows, drop, packing,
                    {da.as<float>(), rank, da.dim(1), da.dim(1), 1, scale});
    }
    if (!db.empty()) {
      const Operand<T> u = project(call, rows, first_factor<T>(call, term, false), drop);
      outer_by_cell(call, u, drows, {}, packing, {db.as<float>(), rank, db.dim(0), 1, rank, scale});
    }
  });
}

void linear_backward_weight(Context& ctx, ConstTensorView x, ConstTensorView dy,
                            const Packing& packing, TensorView dweight, TensorView dbias) {
  Call call(ctx, "linear_backward_weight");
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    require_tensor_cores<T>(call);
    const int64_t in = x.dim(1);
    const int64_t out = dy.dim(1);
    if (!dweight.empty())
      outer_by_cell(call, operand<T>(call, dy), operand<T>(call, x), {}, packing,
                    {dweight.as<float>(), out, in, in, 1, 1.0f});
    if (!dbias.empty())
      sum_by_cell(call, packing, 1, out, {dbias.as<float>(), 1, out, out, 1, 1.0f},
                  [&](const Pieces& pieces, float* partial) {
                    launch(ctx, call.op, sum_columns_kernel<T>,
                           {.x = pieces.count() * ceil_div(out, kColumnThreads)}, kColumnThreads, 0,
                           dy.as<T>(), out, pieces, partial);
                  });
  });
}

}  // namespace scgraft::cuda
