// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "benchmarks/kernels/bench.h"
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/parallel.h"

namespace scgraft {

// Bytes per second that memcpy moves (read and written counted) on the context's threads, over as
// many bytes as an operation moves: the ceiling of a memory-bound operation. Median of several
// copies, measured in the same process as the operation.
inline double copy_rate(Context& ctx, int64_t bytes) {
  constexpr int64_t kBlock = 1 << 16;
  const int64_t n = std::max(kBlock, bytes / 2 / kBlock * kBlock);
  const Buffer from(n), to(n);
  std::vector<double> rates;
  for (int repeat = 0; repeat < 16; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    parallel_for(ctx, n / kBlock, [&](int64_t block) {
      std::memcpy(static_cast<std::byte*>(to.data()) + block * kBlock,
                  static_cast<const std::byte*>(from.data()) + block * kBlock, kBlock);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    benchmark::DoNotOptimize(to.data());
    if (repeat > 0) rates.push_back(2.0 * static_cast<double>(n) / took.count());
  }
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

// report() and beside it what memcpy reaches: "copy GB/s", and "of copy", the share of it.
inline void report_against_copy(benchmark::State& state, Context& ctx, Cost cost) {
  report(state, cost);
  const double rate = copy_rate(ctx, cost.bytes);
  state.counters["copy GB/s"] = 1e-9 * rate;
  state.counters["of copy"] = benchmark::Counter(static_cast<double>(cost.bytes) / rate,
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

// Packed cells of equal length, as a training batch has them.
class BenchCells {
 public:
  BenchCells(int64_t rows, int64_t length) {
    for (int64_t at = 0; at < rows; at += length) {
      offsets_.push_back(static_cast<int32_t>(std::min(at + length, rows)));
      ids_.push_back(static_cast<int64_t>(ids_.size()));
    }
  }
  Packing packing() const { return Packing::over(offsets_, ids_); }

 private:
  std::vector<int32_t> offsets_ = {0};
  std::vector<int64_t> ids_;
};

// Token counts: 4 cells of 1,202 tokens, which fit the caches of a server, and 16 of 1,200, which
// do not. Dropout in percent.
inline void token_counts(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "drop"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (int64_t tokens : {4808, 19200})
    for (int64_t drop : {0, 20}) b->Args({tokens, drop});
}
inline Dropout bench_dropout(const benchmark::State& state) {
  return {.p = static_cast<float>(state.range(1)) / 100.0f,
          .site = static_cast<uint32_t>(RandomUse::dropout)};
}
inline constexpr int64_t kBenchDim = 512;
inline constexpr int64_t kBenchSeq = 1202;

}  // namespace scgraft
