// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu.h"

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string_view>

namespace scgraft {
namespace {

bool has_v4() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

int positive_env(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return 0;
  const long value = std::strtol(text, nullptr, 10);
  return value > 0 && value < 4096 ? static_cast<int>(value) : 0;
}

// Processors the cgroup (version 2) quota amounts to, rounded up; 0 when there is no quota.
int cgroup_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::max(1, static_cast<int>(std::strtod(quota.c_str(), nullptr) / period + 0.999));
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = [] {
    const char* forced = std::getenv("SCGRAFT_CPU_LEVEL");
    if (forced != nullptr && std::string_view(forced) == "v3") return CpuLevel::v3;
    return has_v4() ? CpuLevel::v4 : CpuLevel::v3;
  }();
  return level;
}

bool cpu_has_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  return "unknown";
}

int default_threads() {
  if (const int n = positive_env("SLURM_CPUS_PER_TASK")) return n;
  if (const int n = positive_env("OMP_NUM_THREADS")) return n;
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  if (const int quota = cgroup_quota()) n = std::min(n, quota);
  return std::max(n, 1);
}

int64_t peak_resident_bytes() {
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace scgraft
