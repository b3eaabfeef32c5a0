// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <benchmark/benchmark.h>

#include "runtime/context.h"
#include "runtime/random.h"
#include "runtime/tensor.h"

namespace scgraft {

// What an operation cannot avoid: the bytes it must move and the floating point operations it must
// do (multiply and add counted separately).
struct Cost {
  int64_t bytes = 0;
  int64_t flops = 0;
};

// Reports GB/s and GFLOP/s of the declared cost.
inline void report(benchmark::State& state, Cost cost) {
  using benchmark::Counter;
  state.counters["bytes"] = static_cast<double>(cost.bytes);
  state.counters["flops"] = static_cast<double>(cost.flops);
  state.counters["GB/s"] =
      Counter(1e-9 * static_cast<double>(cost.bytes), Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] =
      Counter(1e-9 * static_cast<double>(cost.flops), Counter::kIsIterationInvariantRate);
}

inline Tensor random_tensor(Shape shape, uint32_t which = 0) {
  Tensor t(shape, DType::f32);
  RandomStream stream(1, RandomUse::initialise, which);
  float* data = t.as<float>();
  for (int64_t i = 0; i < t.numel(); ++i) data[i] = uniform24(stream.next()) - 0.5f;
  return t;
}

}  // namespace scgraft
