// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <algorithm>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "kernels/activation.h"
#include "kernels/activation_simd.h"
#include "kernels/add.h"
#include "kernels/dropout_rows.h"
#include "kernels/linear_simd.h"
#include "kernels/linear_weight_impl.h"
#include "kernels/relu_dropout.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"
#include "runtime/cpu.h"

namespace scgraft {
namespace {

const LinearTiles& tiles() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::linear_tiles;
#endif
  return v3::linear_tiles;
}

using Memory = dnnl::memory;

void check_epilogue(const char* op, Context& ctx, const LinearEpilogue& e, TensorView y) {
  ctx.require_here(op, e.pre, e.residual);
  require_optional(op, "residual", e.residual, y.shape(), y.dtype());
  require_optional(op, "pre", e.pre, y.shape(), y.dtype());
  require<ConfigError>(e.gelu || e.pre.empty(), op, ": without gelu nothing is kept for it");
  require(e.pre.empty() || e.pre.data() != y.data(), op, ": pre must not be y");
  require<ConfigError>(!e.relu || (!e.gelu && e.residual.empty()), op,
                       ": neither gelu nor a residual go with relu");
  require<ConfigError>(e.relu || (e.bits.empty() && !e.dropout.active()), op,
                       ": bits and dropout are those of relu");
  ctx.require_here(op, e.bits);
  require_optional(op, "bits", e.bits, Shape{y.dim(0), (y.dim(1) + 7) / 8}, DType::u8);
}

// Parameters and results have the type of the rows; on a GPU f32 goes with rows of any type.
bool fits_rows(const Context& ctx, DType other, DType rows) {
  return other == rows || (ctx.device().is_cuda() && other == sum_type(rows));
}

void check_terms(const char* op, Context& ctx, std::span<const LowRank> terms, int64_t in,
                 int64_t out, DType dtype) {
  for (const LowRank& t : terms) {
    ctx.require_here(op, t.a, t.b);
    require(t.a.rank() == 2 && t.a.dim(1) == in, op, ": low-rank a must be [rank, ", in, "], got ",
            t.a.shape());
    require(t.b.rank() == 2 && t.b.dim(0) == out && t.b.dim(1) == t.a.dim(0), op,
            ": low-rank b must be [", out, ", ", t.a.dim(0), "], got ", t.b.shape());
    require<TypeError>(fits_rows(ctx, t.a.dtype(), dtype) && fits_rows(ctx, t.b.dtype(), dtype), op,
                       ": low-rank terms are ", t.a.dtype(), " and ", t.b.dtype(),
                       ", the rows are ", dtype);
  }
}

// The dropout of each term, checked. Forward it acts on the rows, backward on the term's share.
std::vector<RowDropout> dropouts(const char* op, Context& ctx, std::span<const LowRank> terms,
                                 const Packing* packing, int64_t rows) {
  std::vector<RowDropout> drops;
  for (const LowRank& t : terms) drops.emplace_back(op, ctx, t.dropout, packing, rows);
  return drops;
}

// b^T as [rank, out].
template <class T>
TensorView transposed(Arena::Scope& scratch, ConstTensorView b) {
  TensorView t = scratch.take({b.dim(1), b.dim(0)}, b.dtype());
  const auto from = b.as<T, 2>();
  const auto to = t.as<T, 2>();
  for (int64_t i = 0; i < b.dim(0); ++i)
    for (int64_t j = 0; j < b.dim(1); ++j) to(j, i) = from(i, j);
  return t;
}

// to = drop(from) of n features of one row; to may be from.
template <class T>
void drop_row(const RowDropout& drop, int64_t row, int64_t n, const T* from, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    const Keep keep = drop.keep();
    drop.pieces(row, 0, n, [&](int64_t f, int64_t count, const uint16_t* lanes) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[f + i] = keep(lanes[i], from[f + i]);
    });
  } else {
    drop.each(
        row, n, [&](int64_t f) { return from[f]; }, [&](int64_t f, T value) { to[f] = value; });
  }
}

template <class T>
void linear_definition(Array<const T, 2> x, const PackedWeight::Impl& w, const T* bias,
                       std::span<const LowRank> terms, std::span<const RowDropout> drops,
                       bool backward, bool accumulate, Array<T, 2> y) {
  std::vector<T> dropped(static_cast<size_t>(std::max(w.in, w.out)));
  for (int64_t r = 0; r < x.dim(0); ++r) {
    const T* row = x.row(r);
    T* out = y.row(r);
    for (int64_t n = 0; n < w.out; ++n) {
      T sum = bias ? bias[n] : T(0);
      for (int64_t k = 0; k < w.in; ++k) sum += row[k] * T(w.raw_at(k, n));
      out[n] = accumulate ? out[n] + sum : sum;
    }
    for (size_t i = 0; i < terms.size(); ++i) {
      const LowRank& t = terms[i];
      const auto a = t.a.as<T, 2>();  // [rank, in of the layer]
      const auto b = t.b.as<T, 2>();  // [out of the layer, rank]
      const T* source = row;
      if (drops[i].active()) {  // forward the dropped row, backward the factors of its features
        drops[i].each(
            r, backward ? w.out : w.in, [&](int64_t f) { return backward ? T(1) : row[f]; },
            [&](int64_t f, T value) { dropped[static_cast<size_t>(f)] = value; });
        if (!backward) source = dropped.data();
      }
      for (int64_t n = 0; n < w.out; ++n) {
        T sum = 0;
        for (int64_t j = 0; j < a.dim(0); ++j) {
          T u = 0;
          for (int64_t k = 0; k < w.in; ++k) u += source[k] * (backward ? b(k, j) : a(j, k));
          sum += u * (backward ? a(j, n) : b(n, j));
        }
        if (backward && drops[i].active()) sum *= dropped[static_cast<size_t>(n)];
        out[n] += T(t.scale) * sum;
      }
    }
  }
}

bool active(const LinearEpilogue& e) { return e.gelu || !e.residual.empty(); }

// The definition of an epilogue: one plain operation after another. z is overwritten.
void finish_definition(Context& ctx, TensorView z, const LinearEpilogue& e, TensorView y) {
  if (e.gelu) {
    if (!e.pre.empty()) copy(ctx, z, e.pre);
    activation(ctx, Activation::gelu, z, z);
  }
  if (e.residual.empty())
    copy(ctx, z, y);
  else
    add(ctx, z, e.residual, y);
}

// The same for n elements of z that begin at `first` of the others. z may lie in e.pre; `space` has
// room for n elements and may be z elsewhere.
void finish_panel(const float* z, float* space, int64_t first, int64_t n, const LinearEpilogue& e,
                  TensorView y) {
  float* to = y.as<float>() + first;
  const float* before_residual = z;
  if (e.gelu) {
    if (!e.pre.empty() && e.pre.as<float>() + first != z)
      std::copy(z, z + n, e.pre.as<float>() + first);
    float* result = e.residual.empty() ? to : space;
    gelu_of_this_cpu().forward(z, result, n);
    before_residual = result;
  }
  if (e.residual.empty()) return;
  const float* residual = e.residual.as<float>() + first;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = before_residual[i] + residual[i];
}

// What one thread needs for one panel.
struct PanelScratch {
  TensorView x;        // [kPanelRows, in]: a short last panel, in the product's type
  TensorView y;        // [kPanelRows, out]: likewise, or the product before its epilogue
  TensorView dropped;  // [kPanelRows, max(in, out)]
  TensorView u;        // [kPanelRows, rank]
  TensorView library;  // bytes
};

// dx/y = x times the packed weight, in panels. Forward and backward differ in which side of a
// low-rank term comes first: `first` is [rank, in], `second` is [rank, out], both rows contiguous.
void run_panels(Context& ctx, ConstTensorView x, const PackedWeight::Impl& w, ConstTensorView bias,
                std::span<const LowRank> terms, std::span<const RowDropout> drops, bool backward,
                bool accumulate, const LinearEpilogue& epilogue, TensorView y) {
  const int64_t rows = x.dim(0);
  if (rows == 0) return;
  const bool finish = active(epilogue);
  Arena::Scope scratch(ctx.scratch());
  std::vector<ConstTensorView> first, second;
  int64_t rank = 0;
  bool any_drops = false;
  for (const LowRank& t : terms) {
    const TensorView bt = transposed<float>(scratch, t.b);
    first.push_back(backward ? ConstTensorView(bt) : t.a);
    second.push_back(backward ? t.a : ConstTensorView(bt));
    rank = std::max(rank, t.a.dim(0));
    any_drops = any_drops || t.dropout.active();
  }
  const DType type = w.dtype;
  std::vector<PanelScratch> spaces;
  for (int i = 0; i < ctx.threads(); ++i) {
    PanelScratch s;
    s.x = scratch.take({kPanelRows, w.in}, type);
    s.y = scratch.take({kPanelRows, w.out}, DType::f32);
    if (any_drops) s.dropped = scratch.take({kPanelRows, std::max(w.in, w.out)}, DType::f32);
    if (rank > 0) s.u = scratch.take({kPanelRows, rank}, DType::f32);
    s.library = scratch.take({static_cast<int64_t>(w.scratchpad_bytes) + 64}, DType::u8);
    spaces.push_back(s);
  }
  const float* input = x.as<float>();
  float* output = y.as<float>();
  const PackedWeight::Impl::Product& product =
      accumulate ? w.accumulating : (bias.empty() ? w.plain : w.with_bias);

  for_row_panels(ctx, rows, [&](int64_t begin, int64_t end) {
    const PanelScratch& s = spaces[static_cast<size_t>(thread_index())];
    const int64_t count = end - begin;
    const bool whole = count == kPanelRows;
    const float* in_rows = input + begin * w.in;
    float* out_rows = output + begin * w.out;

    const void* product_in = in_rows;
    if (type == DType::bf16) {
      bf16* to = s.x.as<bf16>();
      for (int64_t i = 0; i < count * w.in; ++i) to[i] = bf16(in_rows[i]);
      std::fill(to + count * w.in, to + kPanelRows * w.in, bf16(0.0f));
      product_in = to;
    } else if (!whole) {
      float* to = s.x.as<float>();
      std::copy(in_rows, in_rows + count * w.in, to);
      std::fill(to + count * w.in, to + kPanelRows * w.in, 0.0f);
      product_in = to;
    }
    float* product_out = s.y.as<float>();
    if (whole && !finish) product_out = out_rows;
    if (whole && !epilogue.pre.empty()) product_out = epilogue.pre.as<float>() + begin * w.out;
    if (!whole && accumulate) {
      std::copy(out_rows, out_rows + count * w.out, product_out);
      std::fill(product_out + count * w.out, product_out + kPanelRows * w.out, 0.0f);
    }
    dnnl::stream stream(dnnl_engine());
    std::unordered_map<int, Memory> args = {
        {DNNL_ARG_SRC, Memory(w.x_desc, dnnl_engine(), const_cast<void*>(product_in))},
        {DNNL_ARG_WEIGHTS, w.packed},
        {DNNL_ARG_DST, Memory(w.y_desc, dnnl_engine(), product_out)},
        {DNNL_ARG_SCRATCHPAD, Memory(product.scratchpad, dnnl_engine(), s.library.data())}};
    if (!bias.empty() && !accumulate)
      args.emplace(DNNL_ARG_BIAS,
                   Memory(w.bias_desc, dnnl_engine(), const_cast<void*>(bias.data())));
    product.primitive.execute(stream, args);
    if (!whole && !finish) std::copy(product_out, product_out + count * w.out, out_rows);
    float* sums = finish ? product_out : out_rows;

    for (size_t i = 0; i < terms.size(); ++i) {
      const LowRank& t = terms[i];
      const int64_t r = t.a.dim(0);
      float* u = s.u.as<float>();
      const float* source = in_rows;
      if (drops[i].active() && !backward) {
        float* to = s.dropped.as<float>();
        for (int64_t row = 0; row < count; ++row)
          drop_row(drops[i], begin + row, w.in, in_rows + row * w.in, to + row * w.in);
        source = to;
      }
      tiles().project(source, first[i].as<float>(), u, count, w.in, r);
      const auto scale = static_cast<float>(t.scale);
      if (drops[i].active() && backward) {
        float* share = s.dropped.as<float>();
        std::fill(share, share + count * w.out, 0.0f);
        tiles().expand(u, second[i].as<float>(), scale, share, count, w.out, r);
        for (int64_t row = 0; row < count; ++row) {
          drop_row(drops[i], begin + row, w.out, share + row * w.out, share + row * w.out);
          for (int64_t k = 0; k < w.out; ++k) sums[row * w.out + k] += share[row * w.out + k];
        }
      } else {
        tiles().expand(u, second[i].as<float>(), scale, sums, count, w.out, r);
      }
    }
    if (finish) finish_panel(sums, s.y.as<float>(), begin * w.out, count * w.out, epilogue, y);
  });
}

void run(const char* op, Context& ctx, ConstTensorView x, const PackedWeight& weight,
         ConstTensorView bias, std::span<const LowRank> terms, const Packing* packing,
         bool backward, bool accumulate, TensorView y, const LinearEpilogue& epilogue = {}) {
  ctx.require_here(op, x, bias, y);
  require(!weight.empty(), op, ": the weight has not been packed");
  const PackedWeight::Impl& w = weight.impl();
  require((w.use == PackedFor::backward_input) == backward, op,
          ": the weight is packed for the other direction");
  require(x.rank() == 2 && x.dim(1) == w.in, op, ": rows must be [rows, ", w.in, "], got ",
          x.shape());
  require(y.shape() == (Shape{x.dim(0), w.out}), op, ": result must be ", Shape{x.dim(0), w.out},
          ", got ", y.shape());
  require<TypeError>(fits_rows(ctx, y.dtype(), x.dtype()), op, ": rows are ", x.dtype(),
                     ", result is ", y.dtype());
  require(bias.empty() || (bias.shape() == Shape{w.out} && fits_rows(ctx, bias.dtype(), x.dtype())),
          op, ": bias must be [", w.out, "] ", x.dtype(), ", got ", bias.shape(), " ",
          bias.dtype());
  check_terms(op, ctx, terms, backward ? w.out : w.in, backward ? w.in : w.out, x.dtype());
  check_epilogue(op, ctx, epilogue, y);
  const std::vector<RowDropout> drops = dropouts(op, ctx, terms, packing, x.dim(0));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) {
      require<DeviceError>(!w.matrix.empty(), op, ": the weight is packed for another device");
      if (backward)
        cuda::linear_backward_input(ctx, x, weight, terms, packing, accumulate, y);
      else
        cuda::linear(ctx, x, weight, bias, terms, packing, y, epilogue);
      return;
    }
  }
  if (!w.packed) {
    Arena::Scope scratch(ctx.scratch());
    const bool finish = active(epilogue);
    const TensorView z = finish ? scratch.take(y.shape(), y.dtype()) : y;
    visit_real(x.dtype(), [&]<class T>(Type<T>) {
      linear_definition<T>(x.as<T, 2>(), w, data_or_null<T>(bias), terms, drops, backward,
                           accumulate, z.as<T, 2>());
    });
    if (finish) finish_definition(ctx, z, epilogue, y);
  } else {
    run_panels(ctx, x, w, bias, terms, drops, backward, accumulate, epilogue, y);
  }
  if (epilogue.relu) relu_dropout(ctx, y, epilogue.dropout, packing, y, epilogue.bits);
}

void check_gradient(const char* op, Context& ctx, ConstTensorView x, ConstTensorView dy,
                    const Packing& packing) {
  ctx.require_here(op, x, dy);
  require(x.rank() == 2 && dy.rank() == 2 && x.dim(0) == dy.dim(0), op,
          ": x and dy must be [rows, in] and [rows, out], got ", x.shape(), " and ", dy.shape());
  require_packed(op, "x", packing, x.dim(0));
  require<TypeError>(x.dtype() == dy.dtype(), op, ": x is ", x.dtype(), ", dy is ", dy.dtype());
}

void check_gradient_type(const char* op, Context& ctx, DType rows, ConstTensorView gradient) {
  if (gradient.empty()) return;
  ctx.require_here(op, gradient);
  require<TypeError>(gradient.dtype() == sum_type(rows), op, ": gradients beside ", rows,
                     " rows are ", sum_type(rows), ", got ", gradient.dtype());
}

// c[j, k] += scale * sum over rows of g[r, j] x[r, k], cell by cell, and within a cell by spans of
// rows whose g stays in a cache while all columns of x pass it.
template <class T>
void outer_by_cell(Context& ctx, const T* g, const T* x, T scale, T* c, int64_t n, int64_t rank,
                   const Packing& packing) {
  if constexpr (std::is_same_v<T, float>) {
    if (!ctx.reference()) {
      constexpr int64_t kBlock = 64, kSpan = 256;
      const auto some_columns = [&](int64_t begin, int64_t end) {
        for (int64_t b = 0; b < packing.cells(); ++b)
          for (int64_t r = packing.begin(b); r < packing.end(b); r += kSpan)
            tiles().outer(g + r * rank, x + r * n, scale, c, std::min(kSpan, packing.end(b) - r), n,
                          rank, begin, end);
      };
      for_row_panels(ctx, n, some_columns, kBlock);
      return;
    }
  }
  for (int64_t j = 0; j < rank; ++j)
    for (int64_t k = 0; k < n; ++k)
      for (int64_t b = 0; b < packing.cells(); ++b) {
        T sum = 0;
        for (int64_t r = packing.begin(b); r < packing.end(b); ++r)
          sum += g[r * rank + j] * x[r * n + k];
        c[j * n + k] += scale * sum;
      }
}

// u = x a^T with a [rank, n].
template <class T>
void project_rows(Context& ctx, const T* x, const T* a, T* u, int64_t rows, int64_t n,
                  int64_t rank) {
  if constexpr (std::is_same_v<T, float>) {
    if (!ctx.reference()) {
      for_row_panels(ctx, rows, [&](int64_t begin, int64_t end) {
        tiles().project(x + begin * n, a, u + begin * rank, end - begin, n, rank);
      });
      return;
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < rank; ++j) {
      T sum = 0;
      for (int64_t k = 0; k < n; ++k) sum += x[r * n + k] * a[j * n + k];
      u[r * rank + j] = sum;
    }
}

}  // namespace

void linear(Context& ctx, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
            std::span<const LowRank> terms, const Packing* packing, TensorView y,
            const LinearEpilogue& epilogue) {
  run("linear", ctx, x, weight, bias, terms, packing, false, false, y, epilogue);
}

void linear_backward_input(Context& ctx, ConstTensorView dy, const PackedWeight& weight,
                           std::span<const LowRank> terms, const Packing* packing, bool accumulate,
                           TensorView dx) {
  run("linear_backward_input", ctx, dy, weight, {}, terms, packing, true, accumulate, dx);
}

void low_rank_backward(Context& ctx, ConstTensorView x, ConstTensorView dy, const LowRank& term,
                       const Packing& packing, TensorView da, TensorView db) {
  const char* op = "low_rank_backward";
  check_gradient(op, ctx, x, dy, packing);
  check_terms(op, ctx, {&term, 1}, x.dim(1), dy.dim(1), x.dtype());
  const RowDropout drop(op, ctx, term.dropout, &packing, x.dim(0));
  require(da.empty() || da.shape() == term.a.shape(), op, ": da must be ", term.a.shape(), ", got ",
          da.shape());
  require(db.empty() || db.shape() == term.b.shape(), op, ": db must be ", term.b.shape(), ", got ",
          db.shape());
  check_gradient_type(op, ctx, x.dtype(), da);
  check_gradient_type(op, ctx, x.dtype(), db);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::low_rank_backward(ctx, x, dy, term, packing, da, db);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    Arena::Scope scratch(ctx.scratch());
    const int64_t rows = x.dim(0);
    const int64_t in = x.dim(1);
    const int64_t out = dy.dim(1);
    const int64_t rank = term.a.dim(0);
    const T* source = x.as<T>();
    if (term.dropout.active()) {
      TensorView dropped = scratch.take({rows, in}, x.dtype());
      T* to = dropped.as<T>();
      for_row_panels(ctx, rows, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          drop_row(drop, r, in, x.as<T>() + r * in, to + r * in);
      });
      source = to;
    }
    TensorView narrow = scratch.take({rows, rank}, x.dtype());
    if (!da.empty()) {
      const TensorView bt = transposed<T>(scratch, term.b);
      project_rows(ctx, dy.as<T>(), std::as_const(bt).template as<T>(), narrow.as<T>(), rows, out,
                   rank);
      outer_by_cell(ctx, narrow.as<T>(), source, T(term.scale), da.as<T>(), in, rank, packing);
    }
    if (!db.empty()) {
      project_rows(ctx, source, term.a.as<T>(), narrow.as<T>(), rows, in, rank);
      TensorView dbt = transposed<T>(scratch, db);
      outer_by_cell(ctx, narrow.as<T>(), dy.as<T>(), T(term.scale), dbt.as<T>(), out, rank,
                    packing);
      const auto from = dbt.as<T, 2>();
      const auto to = db.as<T, 2>();
      for (int64_t i = 0; i < out; ++i)
        for (int64_t j = 0; j < rank; ++j) to(i, j) = from(j, i);
    }
  });
}

void linear_backward_weight(Context& ctx, ConstTensorView x, ConstTensorView dy,
                            const Packing& packing, TensorView dweight, TensorView dbias) {
  const char* op = "linear_backward_weight";
  check_gradient(op, ctx, x, dy, packing);
  const Shape want{dy.dim(1), x.dim(1)};
  require(dweight.empty() || dweight.shape() == want, op, ": dweight must be ", want, ", got ",
          dweight.shape());
  require(dbias.empty() || dbias.shape() == Shape{dy.dim(1)}, op, ": dbias must be [", dy.dim(1),
          "], got ", dbias.shape());
  check_gradient_type(op, ctx, x.dtype(), dweight);
  check_gradient_type(op, ctx, x.dtype(), dbias);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::linear_backward_weight(ctx, x, dy, packing, dweight, dbias);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const int64_t out = dy.dim(1);
    if (!dweight.empty())
      outer_by_cell(ctx, dy.as<T>(), x.as<T>(), T(1), dweight.as<T>(), x.dim(1), out, packing);
    if (!dbias.empty()) {
      const auto rows = dy.as<T, 2>();
      T* to = dbias.as<T>();
      Arena::Scope scratch(ctx.scratch());
      T* sum = scratch.take({out}, x.dtype()).template as<T>();
      for (int64_t b = 0; b < packing.cells(); ++b) {
        std::fill(sum, sum + out, T(0));
        for (int64_t r = packing.begin(b); r < packing.end(b); ++r)
          for (int64_t n = 0; n < out; ++n) sum[n] += rows(r, n);
        for (int64_t n = 0; n < out; ++n) to[n] += sum[n];
      }
    }
  });
}

}  // namespace scgraft
