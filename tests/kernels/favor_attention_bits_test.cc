// SPDX-License-Identifier: Apache-2.0
// What must not change a bit of FAVOR+ attention, and what may not spread in it.
#include <cmath>
#include <vector>

#include "runtime/gpu/emulator.h"
#include "tests/kernels/capability.h"
#include "tests/kernels/favor_call.h"

namespace scgraft {
namespace {

class FavorAttentionBitsTest : public FavorTest {};
INSTANTIATE_OP_TEST(FavorAttentionBitsTest);

TEST_P(FavorAttentionBitsTest, UnwantedGradientsAreSkippedAndChangeNothing) {
  for (const FavorOptions& options : {FavorOptions{}, kRelu}) {
    FavorCall c = call({3, 70}, 2, 16, 20, options);
    c.forward(ctx());
    c.backward(ctx());
    for (int wanted = 0; wanted < 8; ++wanted) {
      Tensor got[3] = {poisoned(c.q.shape()), poisoned(c.q.shape()), poisoned(c.q.shape())};
      TensorView views[3];
      for (int i = 0; i < 3; ++i)
        if (wanted >> i & 1) views[i] = got[i].view();
      c.backward(ctx(), views[0], views[1], views[2]);
      if (wanted & 1) expect_same_bits(got[0].view(), c.dq.view());
      if (wanted & 2) expect_same_bits(got[1].view(), c.dk.view());
      if (wanted & 4) expect_same_bits(got[2].view(), c.dv.view());
    }
  }
}

void expect_all_same_bits(const FavorCall& a, const FavorCall& b, int64_t begin = 0,
                          int64_t end = -1) {
  const auto rows = [&](const Tensor& t) { return t.view().rows(begin, end < 0 ? t.dim(0) : end); };
  expect_same_bits(rows(a.out), b.out.view());
  expect_same_bits(rows(a.dq), b.dq.view());
  expect_same_bits(rows(a.dk), b.dk.view());
  expect_same_bits(rows(a.dv), b.dv.view());
}

TEST_P(FavorAttentionBitsTest, ThreadCountDoesNotChangeABit) {
  for (const FavorOptions& options : kAll) {
    FavorCall c = call({33, 1040, 7, 200}, 3, 8, 20, options);
    FavorCall one = c.copy();
    c.forward(ctx());
    c.backward(ctx());
    Context single(test_device(), {.threads = 1, .reference = GetParam().reference});
    one.forward(single);
    one.backward(single);
    expect_all_same_bits(c, one);
  }
}

TEST_P(FavorAttentionBitsTest, BatchMatesDoNotChangeABit) {
  for (const FavorOptions& options : {FavorOptions{}, kRelu}) {
    FavorCall c = call({33, 1040, 150, 0}, 2, 24, 30, options);
    c.forward(ctx());
    c.backward(ctx());
    const std::vector<int32_t> offsets = c.cells().offsets;
    for (size_t cell = 0; cell < 3; ++cell) {
      FavorCall alone = c.only(cell);
      alone.forward(ctx());
      alone.backward(ctx());
      expect_all_same_bits(c, alone, offsets[cell], offsets[cell + 1]);
    }
  }
}

// What lies behind the end of a cell is another cell: nothing of it may be touched.
TEST_P(FavorAttentionBitsTest, NanStaysInItsCell) {
  for (const DType type : storage_types())
    for (const FavorOptions& options : {FavorOptions{}, kRelu}) {
      store(type);
      FavorCall c = call({20, 20, 20}, 1, 64, 70, options);
      for (Tensor* t : {&c.q, &c.k, &c.v, &c.dout}) {
        std::vector<double> values = values_of(t->view());
        for (size_t i = 20 * 64; i < 40 * 64; ++i) values[i] = NAN;
        *t = tensor_of(t->shape(), type, values);
      }
      c.forward(ctx());
      c.backward(ctx());
      for (const Tensor* t : {&c.out, &c.dq, &c.dk, &c.dv}) {
        const std::vector<double> values = values_of(t->view());
        for (size_t i = 0; i < values.size(); ++i)
          ASSERT_EQ(std::isnan(values[i]), i >= 20 * 64 && i < 40 * 64) << i;
      }
    }
}

// A number that is none in a query or a key alone is seen in what reads it.
TEST_P(FavorAttentionBitsTest, NanOfATokenIsSeen) {
  for (const FavorOptions& options : {FavorOptions{}, kRelu})
    for (const bool in_key : {false, true}) {
      FavorCall c = call({3}, 1, 4, 5, options);
      Tensor& x = in_key ? c.k : c.q;
      std::vector<double> values = values_of(x.view());
      values[4] = NAN;  // of token 1
      x = tensor(x.shape(), values);
      c.forward(ctx());
      const std::vector<double> out = values_of(c.out.view());
      for (size_t i = 0; i < out.size(); ++i)
        EXPECT_EQ(std::isnan(out[i]), in_key || i / 4 == 1) << i;
    }
}

// exp(-s) and most features are zero: the floor alone is left.
TEST_P(FavorAttentionBitsTest, LargeTokensStayFinite) {
  for (const DType type : storage_types()) {
    store(type);
    for (const FavorOptions& options : {FavorOptions{}, kRelu}) {
      FavorCall c = call({70}, 1, 64, 40, options, 30.0);
      c.forward(ctx());
      c.backward(ctx());
      for (const Tensor* t : {&c.out, &c.dq, &c.dk, &c.dv})
        for (const double x : values_of(t->view())) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

TEST_P(FavorAttentionBitsTest, UnalignedTensorsGiveTheSameBits) {
  for (const DType type : storage_types()) {
    store(type);
    FavorCall c = call({33, 5}, 2, 16, 20);
    c.forward(ctx());
    c.backward(ctx());
    const Shape shape = c.q.shape(), feature_shape = c.projection.shape();
    const auto moved = [&](const Tensor& t) {
      std::vector<double> values = values_of(t.view());
      values.insert(values.begin(), 0);
      return tensor_of({t.numel() + 1}, t.dtype(), values);
    };
    Tensor q = moved(c.q), k = moved(c.k), v = moved(c.v), dout = moved(c.dout),
           projection = moved(c.projection);
    Tensor out = poisoned({c.q.numel() + 1}), dq = poisoned(out.shape()),
           dk = poisoned(out.shape()), dv = poisoned(out.shape());
    const std::vector<int32_t> offsets = c.cells().offsets;
    favor_attention(ctx(), behind_first(q, shape), behind_first(k, shape), behind_first(v, shape),
                    packing_over(offsets), 2, behind_first(projection, feature_shape), c.options,
                    behind_first(out, shape), c.context());
    favor_attention_backward(
        ctx(), behind_first(q, shape), behind_first(k, shape), behind_first(v, shape),
        behind_first(out, shape), behind_first(dout, shape), packing_over(offsets), 2,
        behind_first(projection, feature_shape), c.options, c.context(), behind_first(dq, shape),
        behind_first(dk, shape), behind_first(dv, shape));
    expect_same_bits(behind_first(out, shape), c.out.view());
    expect_same_bits(behind_first(dq, shape), c.dq.view());
    expect_same_bits(behind_first(dk, shape), c.dk.view());
    expect_same_bits(behind_first(dv, shape), c.dv.view());
  }
}

TEST_P(FavorAttentionBitsTest, FitsTheSharedMemoryOfEveryDevice) {
  const Capability smallest(75);
  for (const int64_t head_dim : {32, 64, 128}) {
    FavorCall c = call({3}, 1, head_dim, 5);
    c.forward(ctx());
    c.backward(ctx());
  }
}

// Threads, warps and blocks may run in any order.
TEST_P(FavorAttentionBitsTest, SchedulingDoesNotChangeABit) {
  if (!kCudaEmulated || !on_cuda()) GTEST_SKIP() << "only the emulated device can be told an order";
  for (const int64_t head_dim : {64, 128}) {
    FavorCall c = call({70, 1030}, 2, head_dim, 70, head_dim == 64 ? kSoftmax[1] : kRelu);
    c.forward(ctx());
    c.backward(ctx());
    FavorCall other = c.copy();
    for (const gpu::Order order : {gpu::Order::reverse, gpu::Order::random}) {
      gpu::emulator_options().order = order;
      other.forward(ctx());
      other.backward(ctx());
      gpu::emulator_options().order = gpu::Order::forward;
      expect_all_same_bits(c, other);
    }
  }
}

}  // namespace
}  // namespace scgraft
