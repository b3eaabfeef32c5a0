// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "runtime/parallel.h"
#include "runtime/tensor.h"

namespace scgraft {
namespace {

constexpr int64_t kNormBlock = 4096;    // part of the definition of the norm
constexpr int64_t kBlocksPerUnit = 16;  // how much one thread takes at a time
constexpr int64_t kUpdateBlock = 32768;

int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

void check_options(const char* op, const AdamWOptions& o) {
  require<ConfigError>(o.learning_rate >= 0, op, ": the learning rate must be 0 or more, got ",
                       o.learning_rate);
  require<ConfigError>(0 <= o.beta1 && o.beta1 < 1, op, ": beta1 must be in [0, 1), got ", o.beta1);
  require<ConfigError>(0 <= o.beta2 && o.beta2 < 1, op, ": beta2 must be in [0, 1), got ", o.beta2);
  require<ConfigError>(o.eps >= 0, op, ": eps must be 0 or more, got ", o.eps);
  require<ConfigError>(o.max_norm >= 0, op, ": max_norm must be 0 (no clipping) or more, got ",
                       o.max_norm);
  require<ConfigError>(o.gradient_scale > 0, op, ": gradient_scale must be positive, got ",
                       o.gradient_scale);
  require(o.step >= 1, op, ": steps count from 1, got ", o.step);
}

void check_segments(const char* op, std::span<const AdamWSegment> segments, int64_t n) {
  int64_t covered = 0;
  for (const AdamWSegment& s : segments) {
    require(covered <= s.begin && s.begin <= s.end && s.end <= n, op,
            ": segments must be in order, disjoint and inside [0, ", n, "), got ", s.begin, "..",
            s.end, " after ", covered);
    covered = s.end;
  }
}

// What is the same for every element of a segment.
template <class T>
struct Update {
  T clip, beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
  T decay;          // 1 - lr * weight_decay
  T rate;           // lr / (1 - beta1^step)
  T inverse_bias2;  // 1 / (1 - beta2^step)
};

template <class T>
void update(const Update<T> u, int64_t begin, int64_t end, T* p, const T* gradient, T* m, T* v) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const T g = u.clip * gradient[i];
    m[i] = u.beta1 * m[i] + u.one_minus_beta1 * g;
    v[i] = u.beta2 * v[i] + u.one_minus_beta2 * g * g;
    p[i] = u.decay * p[i] - u.rate * m[i] / (std::sqrt(v[i] * u.inverse_bias2) + u.eps);
  }
}

template <class T>
void adamw_cpu(Context& ctx, T* p, const T* gradient, T* m, T* v, int64_t n, double norm,
               const AdamWOptions& o, std::span<const AdamWSegment> segments) {
  const double step = static_cast<double>(o.step);
  const double length = norm / o.gradient_scale;
  const double clip =
      (o.max_norm > 0 && length > o.max_norm ? o.max_norm / length : 1) / o.gradient_scale;
  const double bias1 = 1 - std::pow(o.beta1, step);
  const double bias2 = 1 - std::pow(o.beta2, step);
  parallel_for(ctx, blocks_of(n, kUpdateBlock), [&](int64_t block) {
    const int64_t first = block * kUpdateBlock;
    const int64_t last = std::min(n, first + kUpdateBlock);
    auto s = std::partition_point(segments.begin(), segments.end(),
                                  [first](const AdamWSegment& a) { return a.end <= first; });
    for (; s != segments.end() && s->begin < last; ++s) {
      const double lr = o.learning_rate * s->rate_factor;
      const Update<T> u{.clip = static_cast<T>(clip),
                        .beta1 = static_cast<T>(o.beta1),
                        .beta2 = static_cast<T>(o.beta2),
                        .one_minus_beta1 = static_cast<T>(1 - o.beta1),
                        .one_minus_beta2 = static_cast<T>(1 - o.beta2),
                        .eps = static_cast<T>(o.eps),
                        .decay = static_cast<T>(1 - lr * s->weight_decay),
                        .rate = static_cast<T>(lr / bias1),
                        .inverse_bias2 = static_cast<T>(1 / bias2)};
      update<T>(u, std::max(first, s->begin), std::min(last, s->end), p, gradient, m, v);
    }
  });
}

// The number in a tensor of one f64 on any device; waits for it.
double host_value(ConstTensorView view) {
  double value = 0;
  copy(view, view_of(&value, Shape{1}));
  return value;
}

}  // namespace

void gradient_norm(Context& ctx, ConstTensorView gradient, TensorView norm) {
  const char* op = "gradient_norm";
  ctx.require_here(op, gradient, norm);
  require(gradient.rank() == 1, op, ": gradient must be flat [n], got ", gradient.shape());
  require_tensor(op, "norm", norm, {1}, DType::f64);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::gradient_norm(ctx, gradient, norm);
  }
  const int64_t n = gradient.dim(0);
  const int64_t blocks = blocks_of(n, kNormBlock);
  Arena::Scope scratch(ctx.scratch());
  double* sums = scratch.take({blocks}, DType::f64).as<double>();
  visit_real(gradient.dtype(), [&]<class T>(Type<T>) {
    const T* data = gradient.as<T>();
    parallel_for(ctx, blocks_of(blocks, kBlocksPerUnit), [&](int64_t unit) {
      const int64_t end = std::min(blocks, (unit + 1) * kBlocksPerUnit);
      for (int64_t block = unit * kBlocksPerUnit; block < end; ++block) {
        const T* g = data + block * kNormBlock;
        sums[block] =
            ordered_sum<double>(std::min(kNormBlock, n - block * kNormBlock), [g](int64_t i) {
              const double value = static_cast<double>(g[i]);
              return value * value;
            });
      }
    });
  });
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block];
  *norm.as<double>() = std::sqrt(total);
}

namespace {

void check_adamw(const char* op, Context& ctx, TensorView parameter, ConstTensorView gradient,
                 TensorView m, TensorView v, ConstTensorView norm, const AdamWOptions& options,
                 std::span<const AdamWSegment> segments) {
  ctx.require_here(op, parameter, gradient, m, v, norm);
  require(parameter.rank() == 1, op, ": parameter must be flat [n], got ", parameter.shape());
  require_tensor(op, "gradient", gradient, parameter.shape(), parameter.dtype());
  require_tensor(op, "m", m, parameter.shape(), parameter.dtype());
  require_tensor(op, "v", v, parameter.shape(), parameter.dtype());
  require_tensor(op, "norm", norm, {1}, DType::f64);
  check_options(op, options);
  check_segments(op, segments, parameter.dim(0));
}

void update_on_cpu(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m,
                   TensorView v, double norm, const AdamWOptions& options,
                   std::span<const AdamWSegment> segments) {
  visit_real(parameter.dtype(), [&]<class T>(Type<T>) {
    adamw_cpu<T>(ctx, parameter.as<T>(), gradient.as<T>(), m.as<T>(), v.as<T>(), parameter.dim(0),
                 norm, options, segments);
  });
}

bool all_finite(ConstTensorView losses) {
  return visit_real(losses.dtype(), [&]<class T>(Type<T>) {
    const T* loss = losses.as<T>();
    return std::all_of(loss, loss + losses.numel(), [](T x) { return std::isfinite(x); });
  });
}

}  // namespace

bool adamw(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m, TensorView v,
           ConstTensorView norm, const AdamWOptions& options,
           std::span<const AdamWSegment> segments) {
  check_adamw("adamw", ctx, parameter, gradient, m, v, norm, options, segments);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) {
      cuda::adamw(ctx, parameter, gradient, m, v, norm, {}, options, segments, {});
      return std::isfinite(host_value(norm));
    }
  }
  const double length = *norm.as<double>();
  if (!std::isfinite(length)) return false;
  update_on_cpu(ctx, parameter, gradient, m, v, length, options, segments);
  return true;
}

void adamw(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m, TensorView v,
           ConstTensorView norm, ConstTensorView losses, const AdamWOptions& options,
           std::span<const AdamWSegment> segments, TensorView state) {
  const char* op = "adamw";
  check_adamw(op, ctx, parameter, gradient, m, v, norm, options, segments);
  ctx.require_here(op, losses, state);
  require_tensor(op, "state", state, {static_cast<int64_t>(sizeof(UpdateState))}, DType::u8);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::adamw(ctx, parameter, gradient, m, v, norm, losses, options, segments, state);
  }
  UpdateState now;
  std::memcpy(&now, state.data(), sizeof now);
  const double length = *norm.as<double>();
  const bool update = decide(now, length, all_finite(losses), options.scale_rule);
  std::memcpy(state.data(), &now, sizeof now);
  if (!update) return;
  AdamWOptions decided = options;
  decided.gradient_scale = now.scale_used;
  decided.step = now.steps_done;
  update_on_cpu(ctx, parameter, gradient, m, v, length, decided, segments);
}

}  // namespace scgraft
