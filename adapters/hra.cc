// SPDX-License-Identifier: Apache-2.0
#include "adapters/hra.h"

#include <algorithm>
#include <cmath>

#include "kernels/reflections.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

// What the columns of u are made of at the start, each to be written twice.
Tensor paired_columns(const std::string& name, Shape shape, DType dtype, uint64_t seed) {
  const int64_t pairs = shape[1] / 2;
  Parameter half{name, Tensor({shape[0], pairs}, dtype), {}};
  initialise_uniform(half, 1.0 / std::sqrt(static_cast<double>(pairs)), seed);
  Tensor u(shape, dtype);
  visit_real(dtype, [&]<class T>(Type<T>) {
    const auto from = std::as_const(half.value).as<T, 2>();
    const auto to = u.as<T, 2>();
    for (int64_t i = 0; i < shape[0]; ++i)
      for (int64_t r = 0; r < shape[1]; ++r) to(i, r) = from(i, r / 2);
  });
  return u;
}

// w becomes w H_1 ... H_r, in f64.
//   w [out, in], u [in, r]
template <class T>
void reflect(Array<T, 2> w, ConstTensorView u) {
  const int64_t in = u.dim(0), rank = u.dim(1);
  const auto columns = u.as<T, 2>();
  std::vector<double> n(static_cast<size_t>(in * rank)), row(static_cast<size_t>(in));
  for (int64_t r = 0; r < rank; ++r) {
    double* to = n.data() + r * in;
    double square = 0;
    for (int64_t i = 0; i < in; ++i) {
      to[i] = static_cast<double>(columns(i, r));
      square += to[i] * to[i];
    }
    const double length = std::max(std::sqrt(square), 1e-12);  // as kernels/reflections.h
    for (int64_t i = 0; i < in; ++i) to[i] /= length;
  }
  for (int64_t o = 0; o < w.dim(0); ++o) {
    std::copy_n(w.row(o), in, row.data());
    for (int64_t r = 0; r < rank; ++r) {
      const double* normal = n.data() + r * in;
      double along = 0;
      for (int64_t i = 0; i < in; ++i) along += row[static_cast<size_t>(i)] * normal[i];
      for (int64_t i = 0; i < in; ++i) row[static_cast<size_t>(i)] -= 2 * along * normal[i];
    }
    for (int64_t i = 0; i < in; ++i) w(o, i) = static_cast<T>(row[static_cast<size_t>(i)]);
  }
}

}  // namespace

void Hra::HraSite::make_room(Context& ctx, const Linear& beside) {
  const DType dtype = u->value.dtype();
  const int64_t rank = u->value.dim(1);
  a_ = Tensor({rank, beside.in()}, dtype, ctx.device());
  p_ = Tensor({rank, beside.in()}, dtype, ctx.device());
  b_ = Tensor({beside.out(), rank}, dtype, ctx.device());
  packed_p_ = PackedWeight();
  rows_.emplace(beside.out());
  rows_packing_.assign(ctx, rows_->packing());
}

std::span<const LowRank> Hra::HraSite::terms(Context& ctx, const Linear& beside, bool) {
  if (stale_) {
    if (a_.empty() || a_.device() != ctx.device()) make_room(ctx, beside);
    reflections(ctx, std::as_const(u->value).view(), a_.view(), p_.view());
    packed_p_.pack(ctx, std::as_const(p_).view(), PackedFor::forward, p_.dtype());
    linear(ctx, beside.weight_rows(), packed_p_, {}, {}, nullptr, b_.view());
    term_ = {
        .a = std::as_const(a_).view(), .b = std::as_const(b_).view(), .scale = -1, .dropout = {}};
    stale_ = false;
  }
  return {&term_, 1};
}

void Hra::HraSite::backward(Context& ctx, const Linear& beside, ConstTensorView x,
                            ConstTensorView dy, const Packing& packing) {
  require(!beside.weight()->trainable(), name(), ": an hra adapter needs a frozen weight");
  const LowRank term = terms(ctx, beside, true).front();
  Arena::Scope scratch(ctx.scratch());
  const auto zeros = [&](const Tensor& like) {
    const TensorView view = scratch.take(like.shape(), like.dtype());
    set_zero(ctx, view);
    return view;
  };
  const TensorView da = zeros(a_), dp = zeros(p_), db = zeros(b_);
  low_rank_backward(ctx, x, dy, term, packing, da, db);
  // b = W p^T, so dp = db^T W.
  linear_backward_weight(ctx, beside.weight_rows(), db, rows_packing_.packing(), dp, {});
  reflections_backward(ctx, std::as_const(u->value).view(), da, dp, u->grad.view());
}

Tensor Hra::HraSite::merged(const Tensor& rows) const {
  Tensor out = rows.clone();
  HostCopies host;
  const ConstTensorView columns = host.view(u->value);
  visit_real(out.dtype(), [&]<class T>(Type<T>) { reflect(out.as<T, 2>(), columns); });
  return out;
}

Hra::Hra(const AdapterOptions& options, Backbone& backbone, uint64_t seed)
    : ProjectionAdapter(options) {
  const std::vector<Place> wanted = places(backbone);
  require<ConfigError>(options_.rank >= 2 && options_.rank <= 512 && options_.rank % 2 == 0,
                       "adapter.r of an hra adapter must be even, 2 to 512, got ", options_.rank);
  for (const Place& place : wanted) {
    HraSite& site = add<HraSite>(place);
    site.u = &parameters_.add(place.path + ".hra_u", place.zeros({place.in, options_.rank}));
    const Tensor& u = site.u->value;
    copy(paired_columns(site.u->name, u.shape(), u.dtype(), seed).view(), site.u->value.view());
  }
}

std::unique_ptr<Adapter> make_hra(const AdapterOptions& options, Backbone& backbone,
                                  uint64_t seed) {
  return std::make_unique<Hra>(options, backbone, seed);
}

}  // namespace scgraft
