// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/emulator.h"

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/error.h"
#include "runtime/gpu/emulator_worker.h"
#include "runtime/gpu/launch_log_emulated.h"

namespace scgraft::gpu {

EmulatorOptions& emulator_options() {
  static EmulatorOptions options;
  return options;
}

namespace emulated {
namespace {

// Workers that no launch uses: stacks are kept for the next one.
class Pool {
 public:
  std::unique_ptr<Worker> take() {
    const std::scoped_lock lock(mutex_);
    if (idle_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(idle_.back());
    idle_.pop_back();
    return worker;
  }
  void give_back(std::unique_ptr<Worker> worker) {
    const std::scoped_lock lock(mutex_);
    idle_.push_back(std::move(worker));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> idle_;
};

Pool& pool() {
  // Never destroyed: kernels may run while the process ends.
  static Pool& instance = *new Pool;
  return instance;
}

void check_limits(const EmulatorOptions& options, Grid grid, int block, int64_t shared_bytes) {
  require<DeviceError>(grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 &&
                           grid.z > 0 && grid.z <= 65535,
                       "launch: a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
                       " blocks; at most 2147483647 x 65535 x 65535 are possible");
  require<DeviceError>(block > 0 && block <= std::min(options.max_threads, kMaxThreads),
                       "launch: a block of ", block, " threads; at most ", options.max_threads,
                       " are possible");
  // Gaps between arrays count in shared_bytes, but not towards the limit, and are known only to the
  // kernel: it is asked after its first block.
  require<DeviceError>(shared_bytes >= 0 && shared_bytes <= kArenaBytes / 2,
                       "launch: ", shared_bytes, " bytes of shared memory; at most ",
                       options.max_shared, " are possible");
}

// A random order of `blocks` blocks.
std::vector<int64_t> shuffled(uint64_t seed, int64_t blocks) {
  std::vector<int64_t> positions(static_cast<size_t>(blocks));
  std::iota(positions.begin(), positions.end(), int64_t{0});
  uint64_t state = seed;
  for (size_t i = positions.size(); i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(positions[i - 1], positions[(state >> 33) % i]);
  }
  return positions;
}

}  // namespace

void launch(const void* kernel, Grid grid, int block, int64_t shared_bytes, Body body,
            void* arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const Order order = emulator_options().order;
  const uint64_t seed = emulator_options().seed;
  const int64_t max_shared = emulator_options().max_shared;
  check_limits(emulator_options(), grid, block, shared_bytes);

  Launch launch;
  launch.grid = grid;
  launch.block = block;
  launch.shared_bytes = shared_bytes;
  launch.body = body;
  launch.arguments = arguments;
  launch.order = order;
  launch.capability = emulator_options().compute_capability;
  const int64_t blocks = grid.x * grid.y * grid.z;
  std::vector<int64_t> positions;
  if (order == Order::random) positions = shuffled(seed, blocks);
  const auto n_workers =
      std::clamp<int64_t>(emulator_options().workers, 1, std::min<int64_t>(blocks, 64));
  std::vector<std::unique_ptr<Worker>> workers;
  for (int64_t i = 0; i < n_workers; ++i) workers.push_back(pool().take());

  std::vector<int64_t> gaps(static_cast<size_t>(n_workers), 0);  // bytes, by worker

  // Blocks are dealt in turn, so that which worker runs which block does not depend on time.
  const auto work = [&](int64_t w) {
    Worker& worker = *workers[static_cast<size_t>(w)];
    this_worker = &worker;
    worker.begin(launch, seed + static_cast<uint64_t>(w));
    try {
      for (int64_t i = w; i < blocks && !launch.stop; i += n_workers) {
        int64_t b = order == Order::reverse ? blocks - 1 - i : i;
        if (order == Order::random) b = positions[static_cast<size_t>(i)];
        const Index3 index{static_cast<unsigned>(b % grid.x),
                           static_cast<unsigned>(b / grid.x % grid.y),
                           static_cast<unsigned>(b / grid.x / grid.y)};
        if (!worker.run_block(index)) launch.stop = true;
        // Blocks that return at once know of no gaps.
        int64_t& known_gaps = gaps[static_cast<size_t>(w)];
        known_gaps = std::max(known_gaps, worker.gap_bytes());
      }
    } catch (const std::exception& e) {
      worker.finding = e.what();
      launch.stop = true;
    }
    this_worker = nullptr;
  };
  std::vector<std::thread> threads;
  for (int64_t w = 1; w < n_workers; ++w) threads.emplace_back(work, w);
  work(0);
  for (std::thread& thread : threads) thread.join();
  const int64_t used = shared_bytes - *std::max_element(gaps.begin(), gaps.end());
  log_launch(kernel, block, used);

  EmulatorReport report;
  std::map<std::string, EmulatorReport::Ldmatrix> sites;
  for (std::unique_ptr<Worker>& worker : workers) {
    if (report.finding.empty()) report.finding = worker->finding;
    for (const LdmatrixSite& site : worker->ldmatrix_sites) {
      EmulatorReport::Ldmatrix& sum = sites[text_of(site.site)];
      sum.loads += site.loads;
      sum.extra_phases += site.extra_phases;
    }
    pool().give_back(std::move(worker));
  }
  for (auto& [name, sum] : sites) {
    sum.site = name;
    report.ldmatrix.push_back(sum);
  }
  if (report.finding.empty() && used > max_shared)
    report.finding =
        cat("launch: ", used, " bytes of shared memory; at most ", max_shared, " are possible");
  const std::string finding = report.finding;
  static std::mutex report_mutex;
  {
    const std::scoped_lock lock(report_mutex);
    emulator_options().last_report = std::move(report);
  }
  require<DeviceError>(finding.empty(), "emulator: ", finding);
}

}  // namespace emulated
}  // namespace scgraft::gpu
