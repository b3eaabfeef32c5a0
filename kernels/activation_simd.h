// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft {

// GELU of f32 elements on one thread. An element's bits do not depend on where it lies.
struct GeluLoops {
  void (*forward)(const float* x, float* y, int64_t n);  // y may be x
  // dx = gelu'(x) dy; dx may be dy
  void (*backward)(const float* x, const float* dy, float* dx, int64_t n);
};

namespace v3 {
extern const GeluLoops gelu_loops;
}
namespace v4 {  // x86-64 only
extern const GeluLoops gelu_loops;
}

const GeluLoops& gelu_of_this_cpu();  // in activation.cc

}  // namespace scgraft
