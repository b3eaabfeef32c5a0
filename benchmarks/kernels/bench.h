// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <benchmark/benchmark.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/random.h"
#include "runtime/tensor.h"

namespace scgraft {

// Where the benchmarks of this process run: SCGRAFT_BENCH_DEVICE, "cpu" (the default) or "cuda".
// The emulated device runs shapes of a few tokens, to show that the benchmarks work; its times mean
// nothing.
enum class BenchOn { cpu, gpu, emulated };
BenchOn bench_on();
Device bench_device();

// What an operation cannot avoid: the bytes it must move and the floating point operations it must
// do (multiply and add counted separately).
struct Cost {
  int64_t bytes = 0;
  int64_t flops = 0;
  // Of the products: f32, or bf16 and f16, which a GPU's tensor cores multiply.
  DType type = DType::f32;
  // Bound by memory on the CPU too: reported beside what memcpy reaches.
  bool streams = false;
};

// Times `run`, one call of an operation per iteration, in manual time. On the CPU every iteration
// is timed by the clock. On a GPU every iteration is timed by events, and the second-level cache is
// overwritten before each, as between the operations of a step; counters say
//
//   GB/s, GFLOP/s   of the declared cost
//   floor ms        the longer of bytes / copy rate and flops / product rate, rates as measured on
//                   this device in this process (device_rates())
//   of floor        floor over the median of the iterations
//   p10 ms, p90 ms  of the iterations
//   warm ms         of one call among 20 in a row, nothing overwritten between them
//   host ms         the host's time to enqueue one of those
void measure(benchmark::State& state, Context& ctx, Cost cost, const std::function<void()>& run);

// What the device reaches, measured at the first call: bytes per second of a copy (read and written
// counted), operations per second of f32 multiply-adds and of 16-bit products on tensor cores.
struct DeviceRates {
  double copy = 0;
  double f32 = 0;
  double f16 = 0;
};
const DeviceRates& device_rates(Context& ctx);

namespace cuda {  // in rates.cu
// Enqueues a kernel that does nothing but multiply-adds in f32, or products of 16-bit fragments;
// returns the operations it does. `sink` [1] f32 is never written, which the compiler cannot know.
int64_t multiply_adds(Context& ctx, int64_t blocks, int64_t repeats, float* sink);
int64_t fragment_products(Context& ctx, int64_t blocks, int64_t repeats, float* sink);
}  // namespace cuda

// Tensors on bench_device(); random ones are uniform in [-0.5, 0.5).
Tensor random_tensor(Shape shape, uint32_t which = 0, DType type = DType::f32);
inline Tensor new_tensor(Shape shape, DType type = DType::f32) {
  return Tensor(shape, type, bench_device());
}
template <class T>
Tensor tensor_of(const std::vector<T>& values) {
  Tensor t = new_tensor({static_cast<int64_t>(values.size())}, DTypeOf<T>::value);
  copy(view_of(values.data(), t.shape()), t.view());
  return t;
}

// Packed cells on the device of a context.
class BenchCells {
 public:
  BenchCells(Context& ctx, const std::vector<int32_t>& lengths);
  // Rows of cells of equal length, the last one shorter.
  BenchCells(Context& ctx, int64_t rows, int64_t length);
  const Packing& packing() const { return packing_.packing(); }

 private:
  void add(int64_t length);
  std::vector<int32_t> offsets_ = {0};
  std::vector<int64_t> ids_;
  DevicePacking packing_;
};

// Sizes of a benchmark by device: those of `cpu`, of `gpu`, or of `emulated`.
template <class T>
const T& by_device(const T& cpu, const T& gpu, const T& emulated) {
  return bench_on() == BenchOn::cpu ? cpu : bench_on() == BenchOn::gpu ? gpu : emulated;
}

// Packed tokens of scGPT: on the CPU 4 cells of 1,202 tokens, which fit the caches of a server, and
// 16 of 1,200, which do not; on a GPU 8 cells of 600 genes and 64 of 1,200.
const std::vector<int64_t>& token_counts();
// Arguments "bf16" (0 alone on the CPU) and "tokens"; with dropout "drop" behind, in percent.
void sizes_by_tokens(benchmark::internal::Benchmark* b);
void sizes_by_tokens_and_dropout(benchmark::internal::Benchmark* b);
// Every list of arguments with "bf16" in front: 0, and on devices 1.
void in_types(benchmark::internal::Benchmark* b, std::vector<std::string> names,
              const std::vector<std::vector<int64_t>>& lists);
// What those arguments ask for.
inline DType bench_type(const benchmark::State& state) {
  return state.range(0) != 0 ? DType::bf16 : DType::f32;
}
inline Dropout bench_dropout(const benchmark::State& state) {
  return {.p = static_cast<float>(state.range(2)) / 100.0f,
          .site = static_cast<uint32_t>(RandomUse::dropout)};
}
inline constexpr int64_t kBenchDim = 512;
inline constexpr int64_t kBenchSeq = 1202;

}  // namespace scgraft
