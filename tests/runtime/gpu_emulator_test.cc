// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/gpu/gpu.cuh"

namespace scgraft::gpu {
namespace {

using testing::AllOf;
using testing::HasSubstr;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

class EmulatorTest : public testing::Test {
 protected:
  EmulatorTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    emulator_options() = {};
  }
  ~EmulatorTest() override { emulator_options() = {}; }

  // Calls body() in every order of threads, and twice with random ones.
  template <class Body>
  void in_every_order(const Body& body) {
    for (const auto& [order, seed] : {std::pair{Order::forward, 1}, std::pair{Order::reverse, 1},
                                      std::pair{Order::random, 1}, std::pair{Order::random, 2}}) {
      emulator_options().order = order;
      emulator_options().seed = static_cast<uint64_t>(seed);
      SCOPED_TRACE(cat("order ", static_cast<int>(order), " seed ", seed));
      body();
    }
    emulator_options() = {};
  }
};

// The text of what the emulator found, empty when nothing.
template <class... P, class... A>
std::string finding(void (*kernel)(P...), int block, int64_t shared, A&&... args) {
  try {
    launch_kernel(kernel, Grid{}, block, shared, nullptr, std::forward<A>(args)...);
  } catch (const DeviceError& e) {
    EXPECT_THAT(e.what(), HasSubstr(emulator_options().last_report.finding));
    return e.what();
  }
  EXPECT_EQ(emulator_options().last_report.finding, "");
  return "";
}

// Runs the launch in a child process, where the thread sanitizer must report a race; in other
// builds nothing can see it.
#define EXPECT_RACE(...)                                                                       \
  do {                                                                                         \
    if (!kThreadSanitizer) GTEST_SKIP() << "only the thread sanitizer sees it: emulated-tsan"; \
    EXPECT_EXIT(                                                                               \
        {                                                                                      \
          __VA_ARGS__;                                                                         \
          std::exit(0);                                                                        \
        },                                                                                     \
        testing::ExitedWithCode(66), "data race");                                             \
  } while (false)
#define EXPECT_BAD_ACCESS(kind, ...)                                           \
  do {                                                                         \
    if (!kAddressSanitizer)                                                    \
      GTEST_SKIP() << "only the address sanitizer sees it: emulated-sanitize"; \
    EXPECT_DEATH({ __VA_ARGS__; }, kind);                                      \
  } while (false)

// ---- what runs -------------------------------------------------------------------------------

__global__ void indices_kernel(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x + threadIdx.x] =
      static_cast<int>(1000 * block + threadIdx.x) + 1000000 * (warp() == 2) + lane() / 16;
}

TEST_F(EmulatorTest, RunsEveryThreadOfEveryBlockOnce) {
  in_every_order([] {
    std::vector<int> out(12 * 70, -1);
    launch_kernel(indices_kernel, Grid{3, 2, 2}, 70, 0, nullptr, out.data());
    for (int block = 0; block < 12; ++block)
      for (int t = 0; t < 70; ++t)
        ASSERT_EQ(out[static_cast<size_t>(70 * block + t)],
                  1000 * block + t + (t >= 64 ? 1000000 : 0) + (t % 32) / 16);
  });
}

TEST_F(EmulatorTest, EmptyGridsRunNothing) {
  for (const Grid grid : {Grid{0, 1, 1}, Grid{1, 0, 1}, Grid{1, 1, 0}})
    launch_kernel(indices_kernel, grid, 32, 0, nullptr, static_cast<int*>(nullptr));
}

TEST_F(EmulatorTest, RefusesLaunchesThatADeviceRefuses) {
  int* none = nullptr;
  const auto refusal = [&](Grid grid, int block, int64_t shared) -> std::string {
    try {
      launch_kernel(indices_kernel, grid, block, shared, nullptr, none);
    } catch (const DeviceError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THAT(refusal({1, 65536, 1}, 32, 0), HasSubstr("a grid of 1 x 65536 x 1 blocks"));
  EXPECT_THAT(refusal({-1, 1, 1}, 32, 0), HasSubstr("a grid of -1 x 1 x 1 blocks"));
  EXPECT_THAT(refusal({}, 1025, 0), HasSubstr("a block of 1025 threads"));
  EXPECT_THAT(refusal({}, 0, 0), HasSubstr("a block of 0 threads"));
  EXPECT_THAT(refusal({}, 32, 300 * 1024), HasSubstr("bytes of shared memory; at most 101376"));
}

__global__ void carve_kernel(int64_t n) {
  SharedCarver carver(shared_memory());
  carver.take<float>(n);
  carver.take<float>(4);
}

int64_t carved_bytes(int64_t n) {
  SharedCarver carver(nullptr);
  carver.take<float>(n);
  carver.take<float>(4);
  return carver.used();
}

TEST_F(EmulatorTest, SharedMemoryIsLimitedWithoutTheGaps) {
  const int64_t most = 99 * 256 - 4;
  EXPECT_GT(carved_bytes(most), 99 * 1024);
  EXPECT_EQ(finding(carve_kernel, 32, carved_bytes(most), most), "");
  EXPECT_THAT(finding(carve_kernel, 32, carved_bytes(most + 4), most + 4),
              HasSubstr("101392 bytes of shared memory; at most 101376"));
}

TEST_F(EmulatorTest, CarverAlignsAndSeparates) {
  EXPECT_EQ(SharedCarver(nullptr).used(), 0);
  SharedCarver host(nullptr);
  EXPECT_EQ(host.take<float>(3), nullptr);
  EXPECT_EQ(host.used(), 12);
  host.take<uint16_t>(5, 128);
  EXPECT_EQ(host.used(), 128 + kSharedGap + 10);
}

__global__ void first_come_kernel(uint32_t* count, uint32_t* order) {
  order[atomic_add(count, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

std::vector<uint32_t> order_of(Order order, uint64_t seed) {
  emulator_options().order = order;
  emulator_options().seed = seed;
  emulator_options().workers = 1;
  uint32_t count = 0;
  std::vector<uint32_t> out(4 * 96);
  launch_kernel(first_come_kernel, Grid{4, 1, 1}, 96, 0, nullptr, &count, out.data());
  EXPECT_EQ(count, out.size());
  return out;
}

TEST_F(EmulatorTest, OrdersAreWhatTheirNamesSay) {
  std::vector<uint32_t> forward(4 * 96);
  std::iota(forward.begin(), forward.end(), 0u);
  EXPECT_EQ(order_of(Order::forward, 1), forward);
  EXPECT_EQ(order_of(Order::reverse, 1), std::vector<uint32_t>(forward.rbegin(), forward.rend()));
  const std::vector<uint32_t> random = order_of(Order::random, 1);
  EXPECT_EQ(random, order_of(Order::random, 1));
  EXPECT_NE(random, order_of(Order::random, 2));
  EXPECT_NE(random, forward);
  EXPECT_THAT(random, testing::UnorderedElementsAreArray(forward));
}

// Every thread writes one element and, after a barrier, reads its neighbour's.
template <bool kBarrier>
__global__ void neighbour_kernel(float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(blockDim.x);
  for (int round = 0; round < 3; ++round) {
    tile[threadIdx.x] = static_cast<float>(threadIdx.x + 1000 * round);
    if (kBarrier) sync_block();
    out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
    if (kBarrier) sync_block();
  }
}

TEST_F(EmulatorTest, BarriersOrderThreads) {
  in_every_order([&] {
    std::vector<float> out(96, NAN);
    EXPECT_EQ(finding(neighbour_kernel<true>, 96, 96 * 4, out.data()), "");
    for (int t = 0; t < 96; ++t)
      ASSERT_EQ(out[static_cast<size_t>(t)], static_cast<float>((t + 1) % 96 + 2000));
  });
}

__global__ void collectives_kernel(int* out) {
  const int me = lane();
  int sum = 0;
  sum += shuffle(me, (me + 5) % kWarp) == (me + 5) % kWarp ? 1 : 0;
  sum += shuffle(static_cast<uint32_t>(me), 7) == 7u ? 2 : 0;
  sum += shuffle_xor(0.5f * static_cast<float>(me), 9) == 0.5f * static_cast<float>(me ^ 9) ? 4 : 0;
  sum += ballot(me % 3 == 0) == 0x49249249u ? 8 : 0;
  sum += warp_sum(static_cast<float>(me)) == 496.0f ? 16 : 0;
  sum += warp_max(-static_cast<float>((me * 7) % 32)) == 0.0f ? 32 : 0;
  const uint32_t half = me < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int i = 0; i < (me < 16 ? 3 : 5); ++i) sync_warp(half);
  sync_warp();
  out[threadIdx.x] = sum;
}

TEST_F(EmulatorTest, WarpsExchange) {
  in_every_order([&] {
    std::vector<int> out(64, 0);
    EXPECT_EQ(finding(collectives_kernel, 64, 0, out.data()), "");
    EXPECT_THAT(out, testing::Each(63));
  });
}

// The last block to arrive sums what all have written.
template <bool kFence>
__global__ void last_block_kernel(float* parts, uint32_t* count, float* total) {
  parts[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
  if (kFence) fence();
  if (atomic_add(count, 1) == gridDim.x - 1) {
    if (kFence) fence();
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += parts[b];
    *total = sum;
  }
}

template <bool kFence>
float total_of_blocks() {
  std::vector<float> parts(10, NAN);
  uint32_t count = 0;
  float total = NAN;
  launch_kernel(last_block_kernel<kFence>, Grid{10, 1, 1}, 1, 0, nullptr, parts.data(), &count,
                &total);
  return total;
}

TEST_F(EmulatorTest, AFenceAndACounterOrderBlocks) {
  in_every_order([&] { EXPECT_EQ(total_of_blocks<true>(), 55.0f); });
}

TEST_F(EmulatorTest, FindsAMissingFence) { EXPECT_RACE(total_of_blocks<false>()); }

// ---- asynchronous copies ---------------------------------------------------------------------

// Each thread sums `tiles` rows of 16 bytes that it copies through two stages of shared memory.
// kWait is the number of newest groups that the last wait leaves in flight, -1 for no wait at all.
template <int kWait, bool kCommit = true>
__global__ void pipeline_kernel(const float* x, int tiles, float* out) {
  auto* stages = SharedCarver(shared_memory()).take<float>(2 * 4 * blockDim.x);
  const auto stage = [&](int tile) { return stages + 4 * ((tile % 2) * blockDim.x + threadIdx.x); };
  const auto source = [&](int tile) { return x + 4 * (tile * blockDim.x + threadIdx.x); };
  float sum = 0;
  cp_async16(stage(0), source(0), true);
  if (kCommit) cp_async_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      cp_async16(stage(tile + 1), source(tile + 1), true);
      if (kCommit) cp_async_commit();
      if (kWait >= 0) cp_async_wait<1>();
    } else if (kWait >= 0) {
      cp_async_wait < kWait<0 ? 0 : kWait>();
    }
    const F4 v = load_vec<F4>(stage(tile));
    sum += v.x + v.y + v.z + v.w;
  }
  out[threadIdx.x] = sum;
}

template <int kWait, bool kCommit = true>
std::string run_pipeline(std::vector<float>& out) {
  const std::vector<float> x(4 * 32 * 5, 1.0f);
  out.assign(32, 0.0f);
  return finding(pipeline_kernel<kWait, kCommit>, 32, 2 * 16 * 32, x.data(), 5, out.data());
}

TEST_F(EmulatorTest, CopiesArriveWhenWaitedFor) {
  std::vector<float> out;
  EXPECT_EQ((run_pipeline<0>(out)), "");
  EXPECT_THAT(out, testing::Each(20.0f));
}

TEST_F(EmulatorTest, FindsAMissingWait) {
  std::vector<float> out;
  EXPECT_THAT((run_pipeline<-1>(out)), HasSubstr("5 asynchronous copies were not waited for"));
  EXPECT_THAT((run_pipeline<0, false>(out)), HasSubstr("asynchronous copies were not waited for"));
}

TEST_F(EmulatorTest, FindsAWaitThatIsTooWeak) {
  std::vector<float> out;
  EXPECT_THAT((run_pipeline<1>(out)), HasSubstr("1 asynchronous copies were not waited for"));
}

// The wait for the last tile comes after its use: everything is waited for, but too late.
__global__ void late_wait_kernel(const float* x, float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(4 * 32);
  cp_async16(tile + 4 * threadIdx.x, x, true);
  cp_async_commit();
  cp_async_wait<1>();
  out[threadIdx.x] = tile[4 * threadIdx.x];
  cp_async_wait<0>();
}

TEST_F(EmulatorTest, CopiesDoNotArriveBeforeTheyAreWaitedFor) {
  const std::vector<float> x(4, 1.0f);
  std::vector<float> out(32, 0.0f);
  EXPECT_EQ(finding(late_wait_kernel, 32, 16 * 32, x.data(), out.data()), "");
  for (const float v : out) EXPECT_TRUE(std::isnan(v));
}

__global__ void zero_fill_kernel(const float* x, float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(4);
  cp_async16(tile, x, false);
  cp_async_commit();
  cp_async_wait<0>();
  *out = tile[0] + tile[3];
}

TEST_F(EmulatorTest, CopiesThatAreNotValidGiveZeros) {
  const std::vector<float> x(4, 1.0f);
  float out = NAN;
  EXPECT_EQ(finding(zero_fill_kernel, 1, 16, x.data(), &out), "");
  EXPECT_EQ(out, 0.0f);
  EXPECT_THAT(finding(zero_fill_kernel, 1, 16, static_cast<const float*>(nullptr), &out),
              HasSubstr("is no valid address"));
}

// ---- mistakes the emulator finds itself ------------------------------------------------------

TEST_F(EmulatorTest, FindsAMissingBarrier) {
  std::vector<float> out(96, 0.0f);
  const auto run = [&] { finding(neighbour_kernel<false>, 96, 96 * 4, out.data()); };
  if (kThreadSanitizer) {
    EXPECT_RACE(run());
    return;
  }
  // What a neighbour had not written yet is NaN, or what it wrote a round ago.
  in_every_order([&] {
    run();
    int wrong = 0;
    for (int t = 0; t < 96; ++t)
      wrong += out[static_cast<size_t>(t)] != static_cast<float>((t + 1) % 96 + 2000);
    EXPECT_GT(wrong, 0);
  });
}

__global__ void unwritten_kernel(float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(8);
  const auto* halves = reinterpret_cast<const uint16_t*>(tile);
  f16 h;
  bf16 b;
  h.bits = halves[2];
  b.bits = halves[4];
  out[0] = tile[0];
  out[1] = to_f32(h);
  out[2] = to_f32(b);
}

TEST_F(EmulatorTest, SharedMemoryThatWasNotWrittenIsNaN) {
  std::vector<float> out(3, 0.0f);
  EXPECT_EQ(finding(unwritten_kernel, 1, 32, out.data()), "");
  for (const float v : out) EXPECT_TRUE(std::isnan(v));
}

constexpr int kDivergentLine = __LINE__ + 3;
__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32)
    sync_block();
  else
    sync_block();
}

TEST_F(EmulatorTest, FindsADivergentBarrier) {
  in_every_order([] {
    EXPECT_THAT(
        finding(divergent_barrier_kernel, 64, 0),
        AllOf(HasSubstr("divergent sync_block"), HasSubstr("gpu_emulator_test.cc"),
              HasSubstr(cat(":", kDivergentLine)), HasSubstr(cat(":", kDivergentLine + 2))));
  });
}

__global__ void early_return_kernel(unsigned n) {
  if (threadIdx.x >= n) return;
  sync_block();
}

TEST_F(EmulatorTest, FindsAReturnBeforeABarrier) {
  EXPECT_THAT(
      finding(early_return_kernel, 64, 0, 40u),
      AllOf(HasSubstr("thread (40, 0, 0)"), HasSubstr("returned while"), HasSubstr("sync_block")));
  emulator_options().order = Order::reverse;
  EXPECT_THAT(finding(early_return_kernel, 64, 0, 40u),
              AllOf(HasSubstr("24 of 64 threads of the block returned before this sync_block"),
                    HasSubstr("thread (39, 0, 0)")));
  EXPECT_EQ(finding(early_return_kernel, 64, 0, 0u), "");
  EXPECT_EQ(finding(early_return_kernel, 64, 0, 64u), "");
}

__global__ void returned_lane_kernel() {
  if (lane() == 9) return;
  warp_sum(1.0f);
}

TEST_F(EmulatorTest, FindsACollectiveWithALaneThatReturned) {
  EXPECT_THAT(
      finding(returned_lane_kernel, 32, 0),
      AllOf(HasSubstr("thread (9, 0, 0)"), HasSubstr("returned while lane 0 waits for it")));
  emulator_options().order = Order::random;
  EXPECT_THAT(finding(returned_lane_kernel, 32, 0), HasSubstr("returned"));
}

__global__ void partial_warp_kernel() { sync_warp(); }

TEST_F(EmulatorTest, FindsACollectiveOfAWarpThatIsNotWhole) {
  EXPECT_THAT(finding(partial_warp_kernel, 40, 0),
              HasSubstr("lane 8 is named, but the block ends before it"));
}

__global__ void foreign_mask_kernel() { sync_warp(0xffu); }

TEST_F(EmulatorTest, FindsAMaskWithoutTheCaller) {
  EXPECT_THAT(finding(foreign_mask_kernel, 32, 0),
              AllOf(HasSubstr("the mask ff omits the calling lane"), HasSubstr("lane 8")));
}

__global__ void two_collectives_kernel(int* out) {
  if (lane() < 12)
    out[lane()] = shuffle(1, 0);
  else
    out[lane()] = static_cast<int>(ballot(true));
}

TEST_F(EmulatorTest, FindsAWarpInTwoCollectives) {
  std::vector<int> out(32);
  in_every_order([&] {
    EXPECT_THAT(
        finding(two_collectives_kernel, 32, 0, out.data()),
        AllOf(HasSubstr("a warp in two collectives"), HasSubstr("shuffle"), HasSubstr("ballot")));
  });
}

__global__ void far_shuffle_kernel() { shuffle(1, lane() + 1); }

TEST_F(EmulatorTest, FindsAShuffleFromOutsideTheWarp) {
  EXPECT_THAT(finding(far_shuffle_kernel, 32, 0),
              AllOf(HasSubstr("shuffle from lane 32"), HasSubstr("lane 31")));
}

__global__ void deadlock_kernel() {
  if (lane() == 0)
    sync_block();
  else
    sync_warp();
}

TEST_F(EmulatorTest, FindsADeadlock) {
  in_every_order([] {
    EXPECT_THAT(finding(deadlock_kernel, 64, 0),
                AllOf(HasSubstr("deadlock"), HasSubstr("2 wait in sync_block"),
                      HasSubstr("62 wait in sync_warp"), HasSubstr("gpu_emulator_test.cc:")));
  });
}

enum class Access { load, store, copy_source, copy_target, matrix, matrix_global };

__global__ void misaligned_kernel(Access access, float* global) {
  auto* shared = SharedCarver(shared_memory()).take<float>(4 * 33);
  uint32_t r[4];
  switch (access) {
    case Access::load:
      load_vec<F4>(global + 1);
      break;
    case Access::store:
      store_vec(global + 1, U2{});
      break;
    case Access::copy_source:
      cp_async16(shared, global + 2, true);
      break;
    case Access::copy_target:
      cp_async16(shared + 2, global, true);
      break;
    case Access::matrix:
      ldmatrix_x4(r, shared + 4 * lane() + (lane() == 3 ? 2 : 0));
      break;
    case Access::matrix_global:
      ldmatrix_x4(r, global);
      break;
  }
}

TEST_F(EmulatorTest, FindsMisalignedAccesses) {
  alignas(16) float global[64] = {};
  const auto found = [&](Access access) {
    return finding(misaligned_kernel, 32, 16 * 33, access, +global);
  };
  EXPECT_THAT(found(Access::load), AllOf(HasSubstr("load_vec"), HasSubstr("not a multiple of 16")));
  EXPECT_THAT(found(Access::store),
              AllOf(HasSubstr("store_vec"), HasSubstr("not a multiple of 8")));
  EXPECT_THAT(found(Access::copy_source), HasSubstr("cp_async16: the source"));
  EXPECT_THAT(found(Access::copy_target), HasSubstr("cp_async16: the destination"));
  EXPECT_THAT(found(Access::matrix), AllOf(HasSubstr("ldmatrix"), HasSubstr("lane 3")));
  EXPECT_THAT(found(Access::matrix_global), HasSubstr("is not in the block's shared memory"));
}

__global__ void product_kernel(int depth) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (depth == 16)
    mma_m16n8k16<f16>(d, a, b);
  else
    mma_m16n8k8(d, {a[0], a[1]}, {b[0]});
}

TEST_F(EmulatorTest, RefusesInstructionsThatTheDeviceLacks) {
  EXPECT_EQ(finding(product_kernel, 32, 0, 16), "");
  emulator_options().compute_capability = 75;
  EXPECT_EQ(finding(product_kernel, 32, 0, 8), "");
  EXPECT_THAT(finding(product_kernel, 32, 0, 16),
              HasSubstr("mma_m16n8k16 needs compute capability 8.0, the device has 7.5"));
  const std::vector<float> x(4, 1.0f);
  float out = NAN;
  EXPECT_THAT(finding(zero_fill_kernel, 1, 16, x.data(), &out), HasSubstr("cp_async16 needs"));
}

__global__ void throwing_kernel() {
  if (blockIdx.x == 0 && threadIdx.x == 5) throw Error("not a number I know");
  sync_block();
}

TEST_F(EmulatorTest, ExceptionsOfAKernelEndTheLaunch) {
  EXPECT_THAT(finding(throwing_kernel, 32, 0),
              AllOf(HasSubstr("not a number I know"), HasSubstr("thread (5, 0, 0)")));
}

TEST_F(EmulatorTest, RunsOnAfterALaunchThatFailed) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_NE(finding(deadlock_kernel, 64, 0), "");
    std::vector<float> out(96, NAN);
    EXPECT_EQ(finding(neighbour_kernel<true>, 96, 96 * 4, out.data()), "");
    EXPECT_EQ(out[0], 2001.0f);
  }
}

// ---- bank conflicts --------------------------------------------------------------------------

__global__ void banks_kernel(int swizzle_mask) {
  auto* tile = SharedCarver(shared_memory()).take<U4>(16 * 8, 128);
  const int row = lane() & 15;
  for (int chunk = lane() >> 4; chunk < 8; chunk += 2) tile[8 * row + chunk] = U4{};
  sync_warp();
  uint32_t r[4];
  for (int k = 0; k < 4; ++k)
    ldmatrix_x4(r, tile + 8 * row + ((2 * k + (lane() >> 4)) ^ (row & swizzle_mask)));
}

TEST_F(EmulatorTest, CountsBankConflictsOfLdmatrix) {
  const auto extra = [](int mask) {
    EXPECT_EQ(finding(banks_kernel, 32, 16 * 128, mask), "");
    const EmulatorReport& report = emulator_options().last_report;
    EXPECT_EQ(report.ldmatrix.size(), 1u);
    EXPECT_EQ(report.ldmatrix.at(0).loads, 4);
    EXPECT_THAT(report.ldmatrix.at(0).site, HasSubstr("gpu_emulator_test.cc:"));
    return report.extra_phases();
  };
  EXPECT_EQ(extra(7), 0);
  EXPECT_EQ(extra(3), 4 * 4 * 1);  // pairs of rows share a bank
  EXPECT_EQ(extra(0), 4 * 4 * 7);  // all eight do
}

// ---- mistakes that only a sanitizer sees -----------------------------------------------------

template <bool kSync>
__global__ void warp_neighbour_kernel(float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(32);
  tile[lane()] = 1.0f;
  // A vote brings the lanes together, but orders no memory.
  ballot(true);
  if (kSync) sync_warp();
  out[lane()] = tile[lane() ^ 1];
}

TEST_F(EmulatorTest, FindsAMissingSyncWarp) {
  std::vector<float> out(32, NAN);
  EXPECT_EQ(finding(warp_neighbour_kernel<true>, 32, 128, out.data()), "");
  EXPECT_THAT(out, testing::Each(1.0f));
  EXPECT_RACE(finding(warp_neighbour_kernel<false>, 32, 128, out.data()));
}

// Lanes write rows of shared memory in one way and read them in another.
enum class Row { scalar, u4, u2, f4, copy, matrix };

__device__ void write_row(Row way, float* row, const float* source) {
  switch (way) {
    case Row::u4:
      return store_vec(row, U4{});
    case Row::u2:
      return store_vec(row, U2{});
    case Row::f4:
      return store_vec(row, F4{});
    case Row::copy:
      cp_async16(row, source, true);
      cp_async_commit();
      return cp_async_wait<0>();
    default:
      row[0] = 0.0f;
  }
}

__device__ float read_row(Row way, const float* row) {
  uint32_t r[4];
  switch (way) {
    case Row::u4:
      return static_cast<float>(load_vec<U4>(row).x);
    case Row::u2:
      return static_cast<float>(load_vec<U2>(row).x);
    case Row::f4:
      return load_vec<F4>(row).x;
    case Row::matrix:
      ldmatrix_x4(r, row);
      return static_cast<float>(r[0]);
    default:
      return row[0];
  }
}

__global__ void rows_kernel(Row writes, Row reads, bool sync, const float* source, float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(4 * 32);
  write_row(writes, tile + 4 * lane(), source);
  if (sync)
    sync_warp();
  else
    ballot(true);
  out[lane()] = read_row(reads, tile + 4 * (lane() ^ 1));
}

class RowsTest : public EmulatorTest, public testing::WithParamInterface<std::pair<Row, Row>> {};

TEST_P(RowsTest, EveryKindOfAccessIsSeen) {
  const auto [writes, reads] = GetParam();
  const std::vector<float> source(4);
  std::vector<float> out(32);
  EXPECT_EQ(finding(rows_kernel, 32, 16 * 32, writes, reads, true, source.data(), out.data()), "");
  EXPECT_RACE(finding(rows_kernel, 32, 16 * 32, writes, reads, false, source.data(), out.data()));
}

INSTANTIATE_TEST_SUITE_P(
    Accesses, RowsTest,
    testing::Values(std::pair{Row::u4, Row::scalar}, std::pair{Row::u2, Row::scalar},
                    std::pair{Row::f4, Row::scalar}, std::pair{Row::copy, Row::scalar},
                    std::pair{Row::scalar, Row::u4}, std::pair{Row::scalar, Row::u2},
                    std::pair{Row::scalar, Row::f4}, std::pair{Row::scalar, Row::matrix}));

// One thread reads 16 bytes of global memory by a copy, another writes them.
__global__ void copied_source_kernel(float* x) {
  auto* tile = SharedCarver(shared_memory()).take<float>(4);
  if (threadIdx.x == 0) {
    cp_async16(tile, x, true);
    cp_async_commit();
    cp_async_wait<0>();
  } else {
    x[2] = 1.0f;
  }
}

TEST_F(EmulatorTest, FindsARaceWithTheSourceOfACopy) {
  alignas(16) float x[4] = {};
  EXPECT_RACE(finding(copied_source_kernel, 2, 16, +x));
}

__global__ void shared_counter_kernel(int* sum) { *sum += 1; }

TEST_F(EmulatorTest, FindsARaceBetweenBlocks) {
  int sum = 0;
  EXPECT_RACE(launch_kernel(shared_counter_kernel, Grid{8, 1, 1}, 1, 0, nullptr, &sum));
}

TEST_F(EmulatorTest, FindsARaceBetweenThreads) {
  int sum = 0;
  EXPECT_RACE(finding(shared_counter_kernel, 8, 0, &sum));
}

// What follows one barrier must not look ordered by the next.
__global__ void late_writer_kernel(float* out) {
  auto* tile = SharedCarver(shared_memory()).take<float>(1);
  sync_block();
  if (threadIdx.x == blockDim.x - 1) tile[0] = 1.0f;
  if (threadIdx.x == 0) out[0] = tile[0];
  sync_block();
}

TEST_F(EmulatorTest, FindsARaceAcrossTheThreadThatRanAhead) {
  float out = 0;
  EXPECT_RACE(finding(late_writer_kernel, 32, 4, &out));
}

__global__ void global_write_kernel(float* out) { out[threadIdx.x] = 1.0f; }

TEST_F(EmulatorTest, FindsAWriteBeyondGlobalMemory) {
  std::vector<float> out(31);
  EXPECT_BAD_ACCESS("heap-buffer-overflow", finding(global_write_kernel, 32, 0, out.data()));
}

__global__ void shared_write_kernel(int index) {
  SharedCarver carver(shared_memory());
  auto* first = carver.take<float>(32);
  auto* second = carver.take<float>(32);
  second[0] = 1.0f;
  (threadIdx.x == 0 ? first : second)[index] = 0.0f;
}

int64_t two_arrays() {
  SharedCarver carver(nullptr);
  carver.take<float>(32);
  carver.take<float>(32);
  return carver.used();
}

TEST_F(EmulatorTest, FindsAWriteBehindASharedArray) {
  EXPECT_EQ(finding(shared_write_kernel, 1, two_arrays(), 31), "");
  if (!kAddressSanitizer) {
    EXPECT_THAT(finding(shared_write_kernel, 1, two_arrays(), 32),
                HasSubstr("wrote shared memory 0 bytes behind the array that ends at byte 128"));
    return;
  }
  EXPECT_BAD_ACCESS("use-after-poison", finding(shared_write_kernel, 1, two_arrays(), 32));
}

TEST_F(EmulatorTest, FindsAWriteBehindSharedMemory) {
  EXPECT_BAD_ACCESS("use-after-poison", finding(shared_write_kernel, 2, two_arrays() - 64, 20));
}

// Rows of 16 bytes, the last of which ends beyond the array.
template <class V>
__global__ void vector_read_kernel(const float* x, float* out) {
  const V v = load_vec<V>(x + threadIdx.x * sizeof(V) / 4);
  out[threadIdx.x] = static_cast<float>(v.x);
}
template <class V>
__global__ void vector_write_kernel(float* x) {
  store_vec(x + threadIdx.x * sizeof(V) / 4, V{});
}

TEST_F(EmulatorTest, FindsAVectorAccessBeyondGlobalMemory) {
  std::vector<float> x(4 * 8 - 1), out(16);
  EXPECT_BAD_ACCESS("heap-buffer-overflow",
                    finding(vector_read_kernel<F4>, 8, 0, x.data(), out.data()));
  EXPECT_BAD_ACCESS("heap-buffer-overflow",
                    finding(vector_read_kernel<U2>, 16, 0, x.data(), out.data()));
  EXPECT_BAD_ACCESS("heap-buffer-overflow", finding(vector_write_kernel<U4>, 8, 0, x.data()));
}

__global__ void copy_row_kernel(const float* x) {
  auto* tile = SharedCarver(shared_memory()).take<float>(4 * 32);
  cp_async16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<0>();
}

TEST_F(EmulatorTest, FindsACopyFromBeyondGlobalMemory) {
  const std::vector<float> x(4 * 31);
  EXPECT_BAD_ACCESS("heap-buffer-overflow", finding(copy_row_kernel, 32, 16 * 32, x.data()));
}

__global__ void short_tile_kernel() {
  SharedCarver carver(shared_memory());
  const auto* tile = carver.take<U4>(31);
  carver.take<U4>(1);
  uint32_t r[4];
  ldmatrix_x4(r, tile + lane());
}

TEST_F(EmulatorTest, FindsALdmatrixBehindASharedArray) {
  EXPECT_BAD_ACCESS("use-after-poison", finding(short_tile_kernel, 32, 32 * 16 + kSharedGap));
}

}  // namespace
}  // namespace scgraft::gpu
