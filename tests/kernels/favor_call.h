// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/favor_attention.h"
#include "tests/kernels/packed_cells.h"

// What the tests of favor_attention() share.
namespace scgraft {

// Inputs, outputs and gradients of one call.
struct FavorCall {
  std::vector<int32_t> lengths;
  int64_t heads;
  FavorOptions options;
  Tensor q = {}, k = {}, v = {}, projection = {}, dout = {};
  Tensor out = {}, dq = {}, dk = {}, dv = {}, sums = {}, mass = {}, largest = {}, peak = {};

  PackedCells cells() const { return {lengths, std::vector<int64_t>(lengths.size(), 0)}; }
  // packed: cells(), which must outlive it.
  Packing packing(const PackedCells& packed) const {
    return q.device().is_cpu() ? Packing::over(packed.offsets) : packing_over(packed.offsets);
  }
  FavorContext context() {
    return {
        .sums = sums.view(), .mass = mass.view(), .largest = largest.view(), .peak = peak.view()};
  }
  static Tensor nans(const Shape& shape, const Tensor& like, DType dtype) {
    const std::vector<double> values(static_cast<size_t>(shape.numel()), NAN);
    return tensor_of(shape, dtype, values).to(like.device());
  }
  void forward(Context& ctx) {
    const auto n = static_cast<int64_t>(lengths.size());
    const int64_t features = projection.dim(0);
    const DType type = projection.dtype();
    out = nans(q.shape(), q, q.dtype());
    sums = nans({n, heads, features, projection.dim(1)}, q, type);
    mass = nans({n, heads, features}, q, type);
    largest = nans({n}, q, type);
    peak = Tensor({n}, DType::i64, q.device());
    const PackedCells packed = cells();
    favor_attention(ctx, q.view(), k.view(), v.view(), packing(packed), heads, projection.view(),
                    options, out.view(), context());
  }
  void backward(Context& ctx) {
    dq = nans(q.shape(), q, q.dtype());
    dk = nans(q.shape(), q, q.dtype());
    dv = nans(q.shape(), q, q.dtype());
    backward(ctx, dq.view(), dk.view(), dv.view());
  }
  void backward(Context& ctx, TensorView to_q, TensorView to_k, TensorView to_v) {
    const PackedCells packed = cells();
    favor_attention_backward(ctx, q.view(), k.view(), v.view(), out.view(), dout.view(),
                             packing(packed), heads, projection.view(), options, context(), to_q,
                             to_k, to_v);
  }
  static FavorCall of(const FavorCall& from, const std::vector<int32_t>& lengths,
                      const std::function<Tensor(const Tensor&)>& tokens, Tensor projection) {
    FavorCall c{.lengths = lengths, .heads = from.heads, .options = from.options};
    c.q = tokens(from.q);
    c.k = tokens(from.k);
    c.v = tokens(from.v);
    c.dout = tokens(from.dout);
    c.projection = std::move(projection);
    return c;
  }
  // The same inputs for the definition.
  FavorCall as_f64() const { return of(*this, lengths, in_f64, in_f64(projection)); }
  FavorCall copy() const {
    return of(
        *this, lengths, [](const Tensor& t) { return t.clone(); }, projection.clone());
  }
  // The inputs of one cell alone.
  FavorCall only(size_t cell) const {
    const PackedCells all = cells();
    const auto rows = [&](const Tensor& t) {
      return tensor_of({lengths[cell], t.dim(1)}, t.dtype(),
                       values_of(t.view().rows(all.offsets[cell], all.offsets[cell + 1])));
    };
    return of(*this, {lengths[cell]}, rows, projection.clone());
  }
};

class FavorTest : public OpTest {
 protected:
  FavorCall call(const std::vector<int32_t>& lengths, int64_t heads, int64_t head_dim,
                 int64_t features, FavorOptions options = {}, double scale = 1) {
    FavorCall c{.lengths = lengths, .heads = heads, .options = options};
    const Shape shape{c.cells().rows(), heads * head_dim};
    c.q = random(shape, scale);
    c.k = random(shape, scale);
    c.v = random(shape);
    c.dout = random(shape);
    const DType stored = dtype();
    if (size_of(stored) == 2) store(DType::f32);
    c.projection = random({features, head_dim});
    store(stored);
    return c;
  }
  bool is_f64() const { return dtype() == DType::f64; }
  bool on_cuda() { return ctx().device().is_cuda(); }
};

inline constexpr FavorOptions kSoftmax[] = {{FavorStabiliser::cell}, {FavorStabiliser::batch}};
inline constexpr FavorOptions kRelu{.kernel = FavorKernel::relu};
inline constexpr FavorOptions kAll[] = {kSoftmax[0], kSoftmax[1], kRelu};
inline Context definition() { return Context(Device::cpu(), {.threads = 2, .reference = true}); }

}  // namespace scgraft
