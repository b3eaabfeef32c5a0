// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

namespace scgraft {

// Which instruction sets the hot loops may use. The `*_simd.cc` files are compiled once per level
// and chosen here, at run time; everything else is compiled for the oldest level.
enum class CpuLevel {
  v3,  // AVX2 and FMA (x86-64-v3), or the baseline of another architecture
  v4,  // AVX-512 F, BW, CD, DQ, VL (x86-64-v4)
};

// The best level this processor has; SCGRAFT_CPU_LEVEL=v3 forces the lower one.
CpuLevel cpu_level();
// True when bf16 products with f32 sums are a machine instruction here.
bool cpu_has_bf16();
// Model name of the processor, for logs and benchmark files.
std::string cpu_name();

// Threads to use: SLURM_CPUS_PER_TASK, then OMP_NUM_THREADS, then the processors this process may
// run on and its cgroup quota allows. At least 1.
int default_threads();

// Largest resident set of this process so far, in bytes (0 where the system does not say).
int64_t peak_resident_bytes();

}  // namespace scgraft
