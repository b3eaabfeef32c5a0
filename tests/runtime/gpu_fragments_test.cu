// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "runtime/gpu/gpu.cuh"
#include "tests/testing/gpu_array.h"

// What each lane holds of a matrix, checked element by element against the layouts that CUTLASS
// publishes for these instructions (include/cute/atom/mma_traits_sm75.hpp, mma_traits_sm80.hpp),
// and the ways to fill those registers by ldmatrix that kernels use.
namespace scgraft::gpu {
namespace {

// The machine may have no device although the build has one.
bool device_missing() {
#ifdef __CUDACC__
  int count = 0;
  return cudaGetDeviceCount(&count) != cudaSuccess || count == 0;
#else
  return false;
#endif
}

class FragmentsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (device_missing()) GTEST_SKIP() << "needs a CUDA device or the emulated one";
  }
};

// A CuTe layout with strides over a lane's two coordinates and the three of its values:
// index = (lane % 4) s0 + (lane / 4) s1 + v0 s2 + v1 s3 + v2 s4.
template <int kLane0, int kLane1, int kValue0, int kValue1, int kValue2 = 0>
SCGRAFT_HD int layout(int lane, int v0, int v1, int v2 = 0) {
  return lane % 4 * kLane0 + lane / 4 * kLane1 + v0 * kValue0 + v1 * kValue1 + v2 * kValue2;
}

template <class T>
SCGRAFT_HD uint32_t pair(T low, T high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

// d (m + 16 n) = c (m + 16 n) + sum over k of a (m + 16 k) b (n + 8 k), one problem per block.
// kDepth is 16 or 8.
template <class T, int kDepth>
__global__ void product_kernel(const T* a_all, const T* b_all, const float* c_all, float* d_all) {
  const T* a = a_all + blockIdx.x * 16 * kDepth;
  const T* b = b_all + blockIdx.x * 8 * kDepth;
  const int me = lane();
  float d[4];
  for (int i = 0; i < 4; ++i)
    d[i] = c_all[blockIdx.x * 128 + layout<32, 1, 16, 8>(me, i & 1, i >> 1)];
  if constexpr (kDepth == 16) {
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i)
      fa[i] = pair(a[layout<32, 1, 16, 8, 128>(me, 0, i & 1, i >> 1)],
                   a[layout<32, 1, 16, 8, 128>(me, 1, i & 1, i >> 1)]);
    for (int i = 0; i < 2; ++i)
      fb[i] = pair(b[layout<16, 1, 8, 64>(me, 0, i)], b[layout<16, 1, 8, 64>(me, 1, i)]);
    mma_m16n8k16<T>(d, fa, fb);
  } else {
    uint32_t fa[2], fb[1];
    for (int i = 0; i < 2; ++i)
      fa[i] = pair(a[layout<32, 1, 16, 8>(me, 0, i)], a[layout<32, 1, 16, 8>(me, 1, i)]);
    fb[0] = pair(b[layout<16, 1, 8, 0>(me, 0, 0)], b[layout<16, 1, 8, 0>(me, 1, 0)]);
    mma_m16n8k8(d, fa, fb);
  }
  for (int i = 0; i < 4; ++i)
    d_all[blockIdx.x * 128 + layout<32, 1, 16, 8>(me, i & 1, i >> 1)] = d[i];
}

template <class T, int kDepth>
std::vector<float> product(const std::vector<T>& a, const std::vector<T>& b,
                           const std::vector<float>& c) {
  GpuArray<T> on_a(a), on_b(b);
  GpuArray<float> on_c(c), d(c.size());
  const auto problems = static_cast<int64_t>(c.size() / 128);
  launch_kernel(product_kernel<T, kDepth>, Grid{.x = problems}, kWarp, 0, nullptr, on_a.data(),
                on_b.data(), on_c.data(), d.data());
  synchronize();
  return {d.data(), d.data() + d.size()};
}

template <class T, int kDepth>
void check_one_hot() {
  // Problem (m, k): a is one at (m, k), so row m of the result is row k of b, the rest is c.
  constexpr int kProblems = 16 * kDepth;
  std::vector<T> a(kProblems * 16 * kDepth, T(0.0f)), b(kProblems * 8 * kDepth);
  std::vector<float> c(kProblems * 128);
  for (int p = 0; p < kProblems; ++p) {
    a[static_cast<size_t>(p * 16 * kDepth + p)] = T(1.0f);
    for (int i = 0; i < 8 * kDepth; ++i)
      b[static_cast<size_t>(p * 8 * kDepth + i)] = T(static_cast<float>(1 + i));
    for (int i = 0; i < 128; ++i) c[static_cast<size_t>(p * 128 + i)] = 1000.0f * (i + 1);
  }
  const std::vector<float> d = product<T, kDepth>(a, b, c);
  for (int p = 0; p < kProblems; ++p)
    for (int n = 0; n < 8; ++n)
      for (int m = 0; m < 16; ++m) {
        const int hot_m = p % 16, hot_k = p / 16;
        const float added = m == hot_m ? static_cast<float>(1 + n + 8 * hot_k) : 0.0f;
        ASSERT_EQ(d[static_cast<size_t>(p * 128 + m + 16 * n)], 1000.0f * (m + 16 * n + 1) + added)
            << "a one at " << hot_m << ", " << hot_k << ", result at " << m << ", " << n;
      }
}

TEST_F(FragmentsTest, M16n8k16OfBf16HoldsWhatTheTableSays) { check_one_hot<bf16, 16>(); }
TEST_F(FragmentsTest, M16n8k16OfF16HoldsWhatTheTableSays) { check_one_hot<f16, 16>(); }
TEST_F(FragmentsTest, M16n8k8HoldsWhatTheTableSays) { check_one_hot<f16, 8>(); }

// Small integers, exact in every type and order of sums.
float small(int i) { return static_cast<float>((i * 7 + i / 5) % 9 - 4); }

enum class Load { x4, x4_trans, x2, x2_trans };

constexpr int kDepth = 64;

// c [16, 16] = a b with a [16, 64] by rows. b is [16, 64] (n by k) or, for transposing loads,
// [64, 16] (k by n); the tile of a, and of b by rows of 64, is swizzled in rows of 128 bytes.
template <class T>
__global__ void ldmatrix_kernel(Load load, const T* a, const T* b, float* c) {
  SharedCarver carver(shared_memory());
  T* tile_a = carver.take<T>(16 * kDepth, 128);
  T* tile_b = carver.take<T>(16 * kDepth, 128);
  const bool by_k = load == Load::x4_trans || load == Load::x2_trans;
  const int me = lane();
  for (int i = me; i < 16 * 8; i += kWarp) {
    const int row = i / 8, chunk = i % 8;
    const int to = row * kDepth + 8 * swizzle(row, chunk);
    store_vec(tile_a + to, load_vec<U4>(a + 8 * i));
    // Rows of 32 bytes are not swizzled.
    store_vec(by_k ? tile_b + 8 * i : tile_b + to, load_vec<U4>(b + 8 * i));
  }
  sync_warp();
  float d[2][4] = {};
  for (int k0 = 0; k0 < kDepth; k0 += 16) {
    uint32_t fa[4], fb[2][2];
    const int row_a = me & 15;
    ldmatrix_x4(fa, tile_a + row_a * kDepth + 8 * swizzle(row_a, k0 / 8 + (me >> 4)));
    if (load == Load::x4) {
      uint32_t r[4];
      const int row = (me & 7) + (me >> 4) * 8;
      ldmatrix_x4(r, tile_b + row * kDepth + 8 * swizzle(row, k0 / 8 + ((me >> 3) & 1)));
      for (int i = 0; i < 4; ++i) fb[i / 2][i % 2] = r[i];
    } else if (load == Load::x4_trans) {
      uint32_t r[4];
      ldmatrix_x4_trans(r, tile_b + (k0 + (me & 15)) * 16 + 8 * (me >> 4));
      for (int i = 0; i < 4; ++i) fb[i / 2][i % 2] = r[i];
    } else {
      for (int j = 0; j < 2; ++j) {
        if (load == Load::x2) {
          const int row = 8 * j + (me & 7);
          ldmatrix_x2(fb[j], tile_b + row * kDepth + 8 * swizzle(row, k0 / 8 + ((me >> 3) & 1)));
        } else {
          ldmatrix_x2_trans(fb[j], tile_b + (k0 + (me & 15)) * 16 + 8 * j);
        }
      }
    }
    for (int j = 0; j < 2; ++j) mma_m16n8k16<T>(d[j], fa, fb[j]);
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i)
      c[(me / 4 + 8 * (i >> 1)) * 16 + 8 * j + 2 * (me % 4) + (i & 1)] = d[j][i];
}

template <class T>
void check_ldmatrix(Load load) {
  const bool by_k = load == Load::x4_trans || load == Load::x2_trans;
  std::vector<T> a(16 * kDepth), b(16 * kDepth);
  for (int i = 0; i < 16 * kDepth; ++i) {
    a[static_cast<size_t>(i)] = T(small(i));
    b[static_cast<size_t>(i)] = T(small(3 * i + 1));
  }
  GpuArray<T> on_a(a), on_b(b);
  GpuArray<float> c(256);
  SharedCarver carver(nullptr);
  carver.take<T>(16 * kDepth, 128);
  carver.take<T>(16 * kDepth, 128);
  launch_kernel(ldmatrix_kernel<T>, Grid{}, kWarp, carver.used(), nullptr, load, on_a.data(),
                on_b.data(), c.data());
  synchronize();
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float want = 0;
      for (int k = 0; k < kDepth; ++k)
        want += static_cast<float>(a[static_cast<size_t>(m * kDepth + k)]) *
                static_cast<float>(b[static_cast<size_t>(by_k ? k * 16 + n : n * kDepth + k)]);
      ASSERT_EQ(c[static_cast<size_t>(m * 16 + n)], want) << m << ", " << n;
    }
}

TEST_F(FragmentsTest, LdmatrixFillsFragmentsFromEitherOrder) {
  for (const Load load : {Load::x4, Load::x4_trans, Load::x2, Load::x2_trans}) {
    SCOPED_TRACE(static_cast<int>(load));
    check_ldmatrix<bf16>(load);
    check_ldmatrix<f16>(load);
  }
}

// Registers as they come, since products forgive what is permuted in both operands alike.
__global__ void registers_kernel(const uint16_t* x, uint32_t* out) {
  uint16_t* tile = SharedCarver(shared_memory()).take<uint16_t>(32 * 8);
  store_vec(tile + 8 * lane(), load_vec<U4>(x + 8 * lane()));
  sync_warp();
  uint32_t r[4][4] = {};
  uint32_t r2[2];
  ldmatrix_x4(r[0], tile + 8 * lane());
  ldmatrix_x4_trans(r[1], tile + 8 * lane());
  ldmatrix_x2(r2, tile + 8 * (lane() & 15));
  for (int i = 0; i < 2; ++i) r[2][i] = r2[i];
  ldmatrix_x2_trans(r2, tile + 8 * (lane() & 15));
  for (int i = 0; i < 2; ++i) r[3][i] = r2[i];
  for (int load = 0; load < 4; ++load)
    for (int i = 0; i < 4; ++i) out[(load * kWarp + lane()) * 4 + i] = r[load][i];
}

TEST_F(FragmentsTest, LdmatrixGivesEachLaneItsPair) {
  // Element (row, column) of matrix i is 64 i + 8 row + column.
  std::vector<uint16_t> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i);
  GpuArray<uint16_t> on_x(x);
  GpuArray<uint32_t> out(4 * kWarp * 4);
  launch_kernel(registers_kernel, Grid{}, kWarp, 32 * 16, nullptr, on_x.data(), out.data());
  synchronize();
  for (uint32_t load = 0; load < 4; ++load)
    for (uint32_t me = 0; me < kWarp; ++me)
      for (uint32_t i = 0; i < (load < 2 ? 4u : 2u); ++i) {
        const uint32_t g = me / 4, t = me % 4;
        const bool transposed = load % 2 == 1;
        const uint32_t low = 64 * i + (transposed ? 8 * (2 * t) + g : 8 * g + 2 * t);
        const uint32_t high = low + (transposed ? 8 : 1);
        ASSERT_EQ(out[(load * kWarp + me) * 4 + i], low | high << 16)
            << load << ", lane " << me << ", register " << i;
      }
}

// A product's result is the next product's left operand without moving between lanes:
// e [16, 8] = bf16(a b) b2 with a b [16, 16].
__global__ void chained_kernel(const bf16* a, const bf16* b, const bf16* b2, float* e) {
  const int me = lane(), g = me / 4, t = me % 4;
  uint32_t fa[4];
  for (int i = 0; i < 4; ++i) {
    const bf16* p = a + (g + 8 * (i & 1)) * 16 + 2 * t + 8 * (i >> 1);
    fa[i] = pair(p[0], p[1]);
  }
  float c[2][4] = {};
  for (int j = 0; j < 2; ++j) {
    uint32_t fb[2];
    for (int i = 0; i < 2; ++i) {
      const bf16* p = b + (2 * t + 8 * i) * 16 + 8 * j + g;
      fb[i] = pair(p[0], p[16]);
    }
    mma_m16n8k16<bf16>(c[j], fa, fb);
  }
  const uint32_t next[4] = {pack2<bf16>(c[0][0], c[0][1]), pack2<bf16>(c[0][2], c[0][3]),
                            pack2<bf16>(c[1][0], c[1][1]), pack2<bf16>(c[1][2], c[1][3])};
  uint32_t fb[2];
  for (int i = 0; i < 2; ++i) {
    const bf16* p = b2 + (2 * t + 8 * i) * 8 + g;
    fb[i] = pair(p[0], p[8]);
  }
  float d[4] = {};
  mma_m16n8k16<bf16>(d, next, fb);
  for (int i = 0; i < 4; ++i) e[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}

TEST_F(FragmentsTest, AResultIsTheNextLeftOperand) {
  std::vector<bf16> a(256), b(256), b2(128);
  // Sums below 256, so that bf16 holds them.
  const auto tiny = [](int i) { return bf16(static_cast<float>((i * 5 + i / 3) % 5 - 2)); };
  for (int i = 0; i < 256; ++i) a[static_cast<size_t>(i)] = tiny(i);
  for (int i = 0; i < 256; ++i) b[static_cast<size_t>(i)] = tiny(7 * i + 2);
  for (int i = 0; i < 128; ++i) b2[static_cast<size_t>(i)] = bf16(small(i));
  GpuArray<bf16> on_a(a), on_b(b), on_b2(b2);
  GpuArray<float> e(128);
  launch_kernel(chained_kernel, Grid{}, kWarp, 0, nullptr, on_a.data(), on_b.data(), on_b2.data(),
                e.data());
  synchronize();
  for (size_t m = 0; m < 16; ++m)
    for (size_t n = 0; n < 8; ++n) {
      float want = 0;
      for (size_t j = 0; j < 16; ++j) {
        float c = 0;
        for (size_t k = 0; k < 16; ++k)
          c += static_cast<float>(a[m * 16 + k]) * static_cast<float>(b[k * 16 + j]);
        want += c * static_cast<float>(b2[j * 8 + n]);
      }
      ASSERT_EQ(e[m * 8 + n], want) << m << ", " << n;
    }
}

// Rows of a [rows, 4] matrix through two stages of shared memory; rows from `valid` on are zeros.
__global__ void copy_kernel(const float* x, int rows, int valid, float* y) {
  SharedCarver carver(shared_memory());
  F4* stages = carver.take<F4>(2 * kWarp);
  const auto issue = [&](int first) {
    const int row = first + lane();
    const bool is_valid = row < valid;
    cp_async16(stages + (first / kWarp % 2) * kWarp + lane(), x + 4 * (is_valid ? row : 0),
               is_valid);
    cp_async_commit();
  };
  issue(0);
  for (int first = 0; first < rows; first += kWarp) {
    if (first + kWarp < rows) {
      issue(first + kWarp);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    sync_warp();
    // A row another lane has copied.
    const int other = kWarp - 1 - lane();
    const F4 v = load_vec<F4>(stages + (first / kWarp % 2) * kWarp + other);
    sync_warp();
    if (first + other < rows) store_vec(y + 4 * (first + other), v);
  }
}

TEST_F(FragmentsTest, AsynchronousCopiesMoveRowsAndFillZeros) {
  for (const int valid : {0, 1, 31, 32, 33, 100}) {
    constexpr int kRows = 100;
    std::vector<float> x(4 * kRows);
    for (int i = 0; i < 4 * kRows; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i + 1);
    GpuArray<float> on_x(x), y(x.size());
    launch_kernel(copy_kernel, Grid{}, kWarp, 2 * kWarp * 16, nullptr, on_x.data(), kRows, valid,
                  y.data());
    synchronize();
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(y[i], i < static_cast<size_t>(4 * valid) ? x[i] : 0.0f) << valid << " " << i;
  }
}

template <class T>
__global__ void convert_kernel(const float* x, int n, uint16_t* narrow, uint32_t* packed,
                               float* wide, float* unpacked) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const T value = from_f32<T>(x[i]);
  narrow[i] = value.bits;
  wide[i] = to_f32(value);
  packed[i] = pack2<T>(x[i], x[n - 1 - i]);
  unpack2<T>(packed[i], unpacked[2 * i], unpacked[2 * i + 1]);
}

template <class T>
void check_conversions() {
  constexpr int kValues = 20000;
  std::vector<float> x(kValues);
  uint64_t state = 5;
  for (float& v : x) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const auto bits = static_cast<uint32_t>(state >> 32);
    // Exponents in the range of halves; NaN is left to the tests of the types.
    v = std::bit_cast<float>((bits & 0x807fffffu) | (100u + (bits >> 24) % 48u) << 23);
  }
  GpuArray<float> on_x(x), wide(x.size()), unpacked(2 * x.size());
  GpuArray<uint16_t> narrow(x.size());
  GpuArray<uint32_t> packed(x.size());
  launch_kernel(convert_kernel<T>, Grid{.x = (kValues + 255) / 256}, 256, 0, nullptr, on_x.data(),
                kValues, narrow.data(), packed.data(), wide.data(), unpacked.data());
  synchronize();
  for (size_t i = 0; i < x.size(); ++i) {
    const T low(x[i]), high(x[x.size() - 1 - i]);
    ASSERT_EQ(narrow[i], low.bits) << x[i];
    ASSERT_EQ(wide[i], static_cast<float>(low));
    ASSERT_EQ(packed[i], pair(low, high));
    ASSERT_EQ(unpacked[2 * i], static_cast<float>(low));
    ASSERT_EQ(unpacked[2 * i + 1], static_cast<float>(high));
  }
}

TEST_F(FragmentsTest, ConversionsAgreeWithTheHost) {
  check_conversions<bf16>();
  check_conversions<f16>();
}

__global__ void functions_kernel(float x, float* out) {
  out[0] = exp2_fast(x);
  out[1] = rsqrt_fast(x);
  out[2] = to_f32(from_f32<float>(x));
}

TEST_F(FragmentsTest, FastFunctionsAreCloseToExactOnes) {
  for (const float x : {0.25f, 1.0f, 3.3f, 17.5f}) {
    GpuArray<float> out(3);
    launch_kernel(functions_kernel, Grid{}, 1, 0, nullptr, x, out.data());
    synchronize();
    EXPECT_NEAR(out[0], std::exp2(x), 1e-6f * std::exp2(x));
    EXPECT_NEAR(out[1], 1 / std::sqrt(x), 1e-6f);
    EXPECT_EQ(out[2], x);
  }
}

}  // namespace
}  // namespace scgraft::gpu
