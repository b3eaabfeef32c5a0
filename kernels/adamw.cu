// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

constexpr int64_t kNormBlock = 4096;  // part of the definition of the norm
constexpr int kNormThreads = 256;
constexpr int kUpdateThreads = 256;

int64_t norm_shared_bytes() {
  gpu::SharedCarver carver(nullptr);
  carver.take<double>(kNormThreads);
  return carver.used();
}

// Sum over the threads of a block in a fixed tree; only thread 0 gets it, others 0.
__device__ __forceinline__ double block_sum_f64(double v) {
  gpu::SharedCarver carver(gpu::shared_memory());
  double* shared = carver.take<double>(kNormThreads);
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = v;
  for (int half = kNormThreads / 2; half > 0; half /= 2) {
    gpu::sync_block();
    if (thread < half) shared[thread] += shared[thread + half];
  }
  return thread == 0 ? shared[0] : 0;
}

// Squares of kNormBlock elements in f64, by one block. Memory: reads the gradient once; that bounds
// it, or the f64 units of cards that have few.
__global__ void __launch_bounds__(kNormThreads)
    square_sums_kernel(const float* gradient, int64_t n, double* sums) {
  const int64_t begin = int64_t{blockIdx.x} * kNormBlock;
  const int64_t end = begin + kNormBlock < n ? begin + kNormBlock : n;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kNormThreads) {
    const double g = static_cast<double>(gradient[i]);
    sum += g * g;
  }
  sum = block_sum_f64(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// norm = sqrt(sum of sums), by one block; a thread adds every 256th.
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const double* sums, int64_t blocks, double* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kNormThreads) sum += sums[i];
  sum = block_sum_f64(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

// What the update needs to know of the norm and the step, decided on the device.
struct Decision {
  double inverse_bias1;  // 1 / (1 - beta1^step)
  float inverse_bias2;   // 1 / (1 - beta2^step)
  float clip;
  int32_t apply;
};

__device__ __forceinline__ void fill(Decision& decision, double length, double max_norm,
                                     double gradient_scale, double beta1, double beta2,
                                     int64_t step) {
  decision.inverse_bias1 = 1 / (1 - pow(beta1, static_cast<double>(step)));
  decision.inverse_bias2 = static_cast<float>(1 / (1 - pow(beta2, static_cast<double>(step))));
  decision.clip = static_cast<float>((max_norm > 0 && length > max_norm ? max_norm / length : 1) /
                                     gradient_scale);
}

// One thread: the update that the options describe.
__global__ void __launch_bounds__(1)
    decide_kernel(const double* norm, double max_norm, double gradient_scale, double beta1,
                  double beta2, int64_t step, Decision* decision) {
  const double length = *norm / gradient_scale;
  fill(*decision, length, max_norm, gradient_scale, beta1, beta2, step);
  // Infinity minus itself is no number.
  decision->apply = length - length == 0 ? 1 : 0;
}

// One block: the update that the state wants, which it counts. Its threads look at the losses, a
// few thousand at most, thread 0 decides.
__global__ void __launch_bounds__(kNormThreads)
    decide_with_state_kernel(const double* norm, const float* losses, int64_t n, double max_norm,
                             double beta1, double beta2, ScaleRule rule, UpdateState* state,
                             Decision* decision) {
  double bad = 0;
  for (int64_t i = threadIdx.x; i < n; i += kNormThreads)
    if (!(losses[i] - losses[i] == 0)) bad += 1;
  bad = block_sum_f64(bad);
  if (threadIdx.x != 0) return;
  UpdateState now = *state;
  const bool apply = decide(now, *norm, bad == 0, rule);
  fill(*decision, now.norm, max_norm, now.scale_used, beta1, beta2, now.steps_done);
  decision->apply = apply ? 1 : 0;
  *state = now;
}

struct Segment {
  int64_t begin;
  int64_t end;
  double rate;  // learning_rate * rate_factor
  float decay;  // 1 - rate * weight_decay
};

// As many segments as one launch takes, by value: nothing is copied to the device.
constexpr int kSegments = 64;
struct Segments {
  Segment list[kSegments];
  int count;
};

struct Update {
  float* p;
  const float* gradient;
  float* m;
  float* v;
  int64_t begin;  // first element of the first thread, a multiple of kLaneColumns
  int64_t n;
  float beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
  const Decision* decision;
};

// A thread owns four neighbouring elements; those outside of all segments are written back as they
// were. Memory: reads p, gradient, m, v and writes p, m, v once; that bounds it.
template <bool kVectors>
__global__ void __launch_bounds__(kUpdateThreads) adamw_kernel(Update a, Segments segments) {
  if (a.decision->apply == 0) return;
  const int64_t first =
      a.begin + (int64_t{blockIdx.x} * kUpdateThreads + threadIdx.x) * kLaneColumns;
  if (first >= a.n) return;
  // The first segment that ends behind the first element.
  int s = 0;
  for (int size = segments.count; size > 0;) {
    const int half = size / 2;
    if (segments.list[s + half].end <= first) {
      s += half + 1;
      size -= half + 1;
    } else {
      size = half;
    }
  }
  const bool whole = kVectors && first + kLaneColumns <= a.n;
  const int count = whole ? kLaneColumns : static_cast<int>(a.n - first);
  const auto load = [&](const float* from, float(&x)[kLaneColumns]) {
    if (whole) return load_columns<true>(from + first, 0, kLaneColumns, x);
    load_columns<false>(from + first, 0, count, x);
  };
  const auto store = [&](float* to, const float(&x)[kLaneColumns]) {
    if (whole) return store_columns<true>(to + first, 0, kLaneColumns, x);
    store_columns<false>(to + first, 0, count, x);
  };
  float p[kLaneColumns], g[kLaneColumns], m[kLaneColumns], v[kLaneColumns];
  load(a.p, p);
  load(a.gradient, g);
  load(a.m, m);
  load(a.v, v);
  const Decision decision = *a.decision;
  UNROLL
  for (int i = 0; i < kLaneColumns; ++i) {
    while (s < segments.count && segments.list[s].end <= first + i) ++s;
    if (s == segments.count || first + i < segments.list[s].begin) continue;
    const auto rate = static_cast<float>(segments.list[s].rate * decision.inverse_bias1);
    const float clipped = decision.clip * g[i];
    m[i] = a.beta1 * m[i] + a.one_minus_beta1 * clipped;
    v[i] = a.beta2 * v[i] + a.one_minus_beta2 * clipped * clipped;
    p[i] = segments.list[s].decay * p[i] -
           rate * m[i] / (sqrtf(v[i] * decision.inverse_bias2) + a.eps);
  }
  store(a.p, p);
  store(a.m, m);
  store(a.v, v);
}

}  // namespace

void gradient_norm(Context& ctx, ConstTensorView gradient, TensorView norm) {
  constexpr const char* kOp = "gradient_norm";
  require<TypeError>(gradient.dtype() == DType::f32, kOp,
                     ": on a GPU the gradient must be f32, got ", gradient.dtype());
  const int64_t n = gradient.dim(0);
  const int64_t blocks = ceil_div(n, kNormBlock);
  Arena::Scope scratch(ctx.scratch());
  double* sums = scratch.take({blocks}, DType::f64).as<double>();
  launch(ctx, kOp, square_sums_kernel, {.x = blocks}, kNormThreads, norm_shared_bytes(),
         gradient.as<float>(), n, sums);
  launch(ctx, kOp, norm_kernel, {}, kNormThreads, norm_shared_bytes(), sums, blocks,
         norm.as<double>());
}

void adamw(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m, TensorView v,
           ConstTensorView norm, ConstTensorView losses, const AdamWOptions& o,
           std::span<const AdamWSegment> segments, TensorView state) {
  constexpr const char* kOp = "adamw";
  require<TypeError>(parameter.dtype() == DType::f32, kOp,
                     ": on a GPU parameters must be f32, got ", parameter.dtype());
  Arena::Scope scratch(ctx.scratch());
  auto* decision = static_cast<Decision*>(
      scratch.take({static_cast<int64_t>(sizeof(Decision))}, DType::u8).data());
  if (state.empty()) {
    launch(ctx, kOp, decide_kernel, {}, 1, 0, norm.as<double>(), o.max_norm, o.gradient_scale,
           o.beta1, o.beta2, o.step, decision);
  } else {
    require<TypeError>(losses.dtype() == DType::f32, kOp, ": on a GPU losses must be f32, got ",
                       losses.dtype());
    launch(ctx, kOp, decide_with_state_kernel, {}, kNormThreads, norm_shared_bytes(),
           norm.as<double>(), losses.as<float>(), losses.numel(), o.max_norm, o.beta1, o.beta2,
           o.scale_rule, static_cast<UpdateState*>(state.data()), decision);
  }
  Update a{.p = parameter.as<float>(),
           .gradient = gradient.as<float>(),
           .m = m.as<float>(),
           .v = v.as<float>(),
           .begin = 0,
           .n = 0,
           .beta1 = static_cast<float>(o.beta1),
           .beta2 = static_cast<float>(o.beta2),
           .one_minus_beta1 = static_cast<float>(1 - o.beta1),
           .one_minus_beta2 = static_cast<float>(1 - o.beta2),
           .eps = static_cast<float>(o.eps),
           .decision = decision};
  const bool vectors = rows_fit_vectors(kPiece, a.p, a.gradient, a.m, a.v);
  while (!segments.empty()) {
    Segments some{};
    some.count = static_cast<int>(std::min<size_t>(segments.size(), kSegments));
    for (int i = 0; i < some.count; ++i) {
      const AdamWSegment& s = segments[static_cast<size_t>(i)];
      const double rate = o.learning_rate * s.rate_factor;
      some.list[i] = {s.begin, s.end, rate, static_cast<float>(1 - rate * s.weight_decay)};
    }
    a.begin = some.list[0].begin / kLaneColumns * kLaneColumns;
    a.n = some.list[some.count - 1].end;
    launch(ctx, kOp, vectors ? adamw_kernel<true> : adamw_kernel<false>,
           {.x = ceil_div(a.n - a.begin, kUpdateThreads * kLaneColumns)}, kUpdateThreads, 0, a,
           some);
    segments = segments.subspan(static_cast<size_t>(some.count));
  }
}

}  // namespace scgraft::cuda
