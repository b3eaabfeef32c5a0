// SPDX-License-Identifier: Apache-2.0
// One program of all benchmarks of kernels: <operation>/<case>, and the flags of Google Benchmark.
// SCGRAFT_BENCH_DEVICE says where (bench.h).
#include <cstdio>
#include <exception>

#include "benchmarks/kernels/bench.h"

namespace scgraft {
namespace {

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  Context ctx(bench_device());
  benchmark::AddCustomContext("device", ctx.device().name());
  if (!ctx.device().is_cpu()) {
    const DeviceRates& rates = device_rates(ctx);
    benchmark::AddCustomContext("copy GB/s", cat(1e-9 * rates.copy));
    benchmark::AddCustomContext("f32 TFLOP/s", cat(1e-12 * rates.f32));
    benchmark::AddCustomContext("f16 TFLOP/s", cat(1e-12 * rates.f16));
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace scgraft

int main(int argc, char** argv) {
  try {
    return scgraft::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernel_bench: %s\n", error.what());
    return 1;
  }
}
