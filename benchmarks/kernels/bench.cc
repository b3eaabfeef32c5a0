// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "runtime/config.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

using Clock = std::chrono::steady_clock;
using benchmark::Counter;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const char* device_text() {
  const char* text = std::getenv("SCGRAFT_BENCH_DEVICE");
  return text == nullptr ? "cpu" : text;
}

// Seconds at quantile q of at least one sample.
double quantile(std::vector<double>& samples, double q) {
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(samples.size() - 1) + 0.5);
  std::nth_element(samples.begin(), samples.begin() + at, samples.end());
  return samples[static_cast<size_t>(at)];
}

// Bytes per second that memcpy moves (read and written counted) on the context's threads, over as
// many bytes as an operation moves. Median of several copies.
double memcpy_rate(Context& ctx, int64_t bytes) {
  constexpr int64_t kBlock = 1 << 16;
  const int64_t n = std::max(kBlock, bytes / 2 / kBlock * kBlock);
  const Buffer from(n), to(n);
  std::vector<double> rates;
  for (int repeat = 0; repeat < 16; ++repeat) {
    const Clock::time_point start = Clock::now();
    parallel_for(ctx, n / kBlock, [&](int64_t block) {
      std::memcpy(static_cast<std::byte*>(to.data()) + block * kBlock,
                  static_cast<const std::byte*>(from.data()) + block * kBlock, kBlock);
    });
    const double took = seconds_since(start);
    benchmark::DoNotOptimize(to.data());
    if (repeat > 0) rates.push_back(2.0 * static_cast<double>(n) / took);
  }
  return quantile(rates, 0.5);
}

// Seconds of `run` on the device, by events.
double device_seconds(Context& ctx, const std::function<void()>& run) {
  Event begin(ctx.device()), end(ctx.device());
  begin.record(ctx.stream());
  run();
  end.record(ctx.stream());
  end.synchronize();
  return 1e-3 * end.milliseconds_since(begin);
}

// More than any second-level cache has.
constexpr int64_t kFlushBytes = kCudaEmulated ? 1 << 10 : 256 << 20;
// Random values of a tensor repeat after so many.
constexpr int64_t kDrawn = (1 << 22) - 1;
constexpr int64_t kRateBytes = kCudaEmulated ? 1 << 12 : 512 << 20;

template <class Work>
double best_rate(Context& ctx, const Work& work) {
  double best = 0;
  for (int repeat = 0; repeat < (kCudaEmulated ? 1 : 8); ++repeat) {
    double amount = 0;
    const double took = device_seconds(ctx, [&] { amount = work(); });
    // The emulated device's events may tell no time.
    best = std::max(best, amount / std::max(took, 1e-9));
  }
  return best;
}

DeviceRates measure_rates(Context& ctx) {
  DeviceRates rates;
  if constexpr (kBuiltWithCuda) {
    const Tensor from = new_tensor({kRateBytes}, DType::u8);
    Tensor to = new_tensor({kRateBytes}, DType::u8);
    Tensor sink = new_tensor({1});
    const int64_t blocks = kCudaEmulated ? 1 : 4096;
    const int64_t repeats = kCudaEmulated ? 1 : 256;
    rates.copy = best_rate(ctx, [&] {
      copy(ctx, from.view(), to.view());
      return 2.0 * static_cast<double>(kRateBytes);
    });
    rates.f32 = best_rate(ctx, [&] {
      return static_cast<double>(cuda::multiply_adds(ctx, blocks, repeats, sink.as<float>()));
    });
    rates.f16 = best_rate(ctx, [&] {
      return static_cast<double>(cuda::fragment_products(ctx, blocks, repeats, sink.as<float>()));
    });
  }
  return rates;
}

void measure_on_cpu(benchmark::State& state, Context& ctx, const Cost& cost,
                    const std::function<void()>& run) {
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    run();
    state.SetIterationTime(seconds_since(start));
  }
  if (!cost.streams) return;
  const double rate = memcpy_rate(ctx, cost.bytes);
  state.counters["copy GB/s"] = 1e-9 * rate;
  state.counters["of copy"] =
      Counter(static_cast<double>(cost.bytes) / rate, Counter::kIsIterationInvariantRate);
}

void measure_on_device(benchmark::State& state, Context& ctx, const Cost& cost,
                       const std::function<void()>& run) {
  const DeviceRates& rates = device_rates(ctx);
  Tensor flush = new_tensor({kFlushBytes}, DType::u8);
  run();  // sizes the arenas
  ctx.synchronize();
  std::vector<double> samples;
  for (auto _ : state) {
    set_zero(ctx, flush.view());
    samples.push_back(device_seconds(ctx, run));
    state.SetIterationTime(samples.back());
  }
  constexpr int kInARow = kCudaEmulated ? 1 : 20;
  double enqueued = 0;
  const double in_a_row = device_seconds(ctx, [&] {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kInARow; ++i) run();
    enqueued = seconds_since(start);
  });
  const double products = cost.type == DType::f32 ? rates.f32 : rates.f16;
  const double floor = std::max(static_cast<double>(cost.bytes) / rates.copy,
                                static_cast<double>(cost.flops) / products);
  state.counters["floor ms"] = 1e3 * floor;
  state.counters["of floor"] = floor / quantile(samples, 0.5);
  state.counters["p10 ms"] = 1e3 * quantile(samples, 0.1);
  state.counters["p90 ms"] = 1e3 * quantile(samples, 0.9);
  state.counters["warm ms"] = 1e3 * in_a_row / kInARow;
  state.counters["host ms"] = 1e3 * enqueued / kInARow;
}

}  // namespace

BenchOn bench_on() {
  if (std::strcmp(device_text(), "cpu") == 0) return BenchOn::cpu;
  return kCudaEmulated ? BenchOn::emulated : BenchOn::gpu;
}

Device bench_device() { return Device::parse(device_text()); }

const DeviceRates& device_rates(Context& ctx) {
  static const DeviceRates rates = measure_rates(ctx);
  return rates;
}

void measure(benchmark::State& state, Context& ctx, Cost cost, const std::function<void()>& run) {
  state.counters["bytes"] = static_cast<double>(cost.bytes);
  state.counters["flops"] = static_cast<double>(cost.flops);
  state.counters["GB/s"] =
      Counter(1e-9 * static_cast<double>(cost.bytes), Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] =
      Counter(1e-9 * static_cast<double>(cost.flops), Counter::kIsIterationInvariantRate);
  if (ctx.device().is_cpu())
    measure_on_cpu(state, ctx, cost, run);
  else
    measure_on_device(state, ctx, cost, run);
}

Tensor random_tensor(Shape shape, uint32_t which, DType type) {
  Tensor t(shape, DType::f32);
  RandomStream stream(1, RandomUse::initialise, which);
  float* data = t.as<float>();
  const int64_t drawn = std::min(t.numel(), kDrawn);
  for (int64_t i = 0; i < drawn; ++i) data[i] = uniform24(stream.next()) - 0.5f;
  for (int64_t i = drawn; i < t.numel(); ++i) data[i] = data[i - drawn];
  if (type == DType::f32) return t.to(bench_device());
  Tensor narrow(shape, type);
  visit_any(type, [&]<class T>(Type<T>) {
    T* to = narrow.as<T>();
    for (int64_t i = 0; i < t.numel(); ++i) to[i] = T(data[i]);
  });
  return narrow.to(bench_device());
}

BenchCells::BenchCells(Context& ctx, const std::vector<int32_t>& lengths) {
  for (const int32_t length : lengths) add(length);
  packing_.assign(ctx, Packing::over(offsets_, ids_));
}

BenchCells::BenchCells(Context& ctx, int64_t rows, int64_t length) {
  for (int64_t at = 0; at < rows; at += length) add(std::min(length, rows - at));
  packing_.assign(ctx, Packing::over(offsets_, ids_));
}

void BenchCells::add(int64_t length) {
  offsets_.push_back(offsets_.back() + static_cast<int32_t>(length));
  ids_.push_back(static_cast<int64_t>(ids_.size()));
}

const std::vector<int64_t>& token_counts() {
  static const std::vector<int64_t> cpu = {4808, 19200}, gpu = {4808, 76864}, emulated = {130};
  return by_device(cpu, gpu, emulated);
}

void in_types(benchmark::internal::Benchmark* b, std::vector<std::string> names,
              const std::vector<std::vector<int64_t>>& lists) {
  names.insert(names.begin(), "bf16");
  b->ArgNames(names)->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t narrow : {0, 1}) {
    if (narrow == 1 && bench_on() == BenchOn::cpu) return;
    for (std::vector<int64_t> list : lists) {
      list.insert(list.begin(), narrow);
      b->Args(list);
    }
  }
}

void sizes_by_tokens(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (const int64_t tokens : token_counts()) lists.push_back({tokens});
  in_types(b, {"tokens"}, lists);
}

void sizes_by_tokens_and_dropout(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (const int64_t tokens : token_counts())
    for (const int64_t drop : {0, 20}) lists.push_back({tokens, drop});
  in_types(b, {"tokens", "drop"}, lists);
}

}  // namespace scgraft
