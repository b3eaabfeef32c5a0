// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention_received.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/require_tensor.h"
#include "runtime/gpu/emulator.h"
#include "tests/kernels/capability.h"
#include "tests/kernels/favor_call.h"

namespace scgraft {
namespace {

// What the keys of a call receive; its values play no part.
Tensor received(Context& ctx, FavorCall& c) {
  c.forward(ctx);
  const PackedCells packed = c.cells();
  Tensor to = FavorCall::nans({c.heads, c.q.dim(0)}, c.q, sum_type(c.q.dtype()));
  favor_attention_received(ctx, c.q.view(), c.k.view(), c.packing(packed), c.heads,
                           c.projection.view(), c.options, c.context(), to.view());
  ctx.synchronize();
  return to;
}

class FavorAttentionReceivedTest : public FavorTest {};
INSTANTIATE_OP_TEST(FavorAttentionReceivedTest);

TEST_P(FavorAttentionReceivedTest, HandComputed) {
  // head_dim 1, so c = 1. Keys 0 and 1: u = (0, 0) and (1, -1), s = 0 and 1/2, largest u is 1.
  FavorCall in = call({2, 1}, 1, 1, 2);
  in.q = tensor({3, 1}, {0, 1, 3});
  in.k = tensor({3, 1}, {0, 1, 2});
  in.projection = tensor({2, 1}, {1, -1});
  const double f = 1e-4, e1 = std::exp(-1.0), e2 = std::exp(-0.5), e3 = std::exp(-2.5);
  const double k0[2] = {e1 + f, e1 + f}, k1[2] = {e2 + f, e3 + f};
  const double q0[2] = {1 + f, 1 + f}, q1[2] = {e2 + f, e3 + f};
  std::vector<double> want = {0, 0, 1};  // the only key of its cell
  for (const double* q : {q0, q1}) {
    const double w0 = q[0] * k0[0] + q[1] * k0[1], w1 = q[0] * k1[0] + q[1] * k1[1];
    want[0] += w0 / (w0 + w1);
    want[1] += w1 / (w0 + w1);
  }
  expect_close(received(ctx(), in).view(), want, 4);
}

// With a 1 at one token and 0 elsewhere as values, attention gives a column of its matrix.
TEST_P(FavorAttentionReceivedTest, IsTheSumOfAColumn) {
  for (const FavorOptions& options : kAll) {
    const int64_t heads = 2, dim = 3;
    FavorCall in = call({5, 0, 4}, heads, dim, 7, options, 2.0);
    std::vector<double> want;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t m = 0; m < 9; ++m) {
        std::vector<double> v(static_cast<size_t>(9 * heads * dim), 0.0);
        v[static_cast<size_t>((m * heads + head) * dim)] = 1;
        in.v = tensor({9, heads * dim}, v);
        in.forward(ctx());
        const std::vector<double> out = values_of(in.out.view());
        double sum = 0;
        for (int64_t n = 0; n < 9; ++n) sum += out[static_cast<size_t>((n * heads + head) * dim)];
        want.push_back(sum);
      }
    expect_close(received(ctx(), in).view(), want, 64);
  }
}

TEST_P(FavorAttentionReceivedTest, AgreesWithTheDefinition) {
  struct Size {
    int64_t head_dim, features;
    std::vector<int32_t> lengths;
  };
  // The last cells have two spans, and three.
  const std::vector<Size> sizes = {
      {1, 7, {0, 1, 2, 3, 31, 33}},
      {2, 1, {65, 1, 17}},
      {16, 44, {1, 0, 37, 129}},
      {31, 33, {33, 31}},
      {33, 65, {257}},
      {64, 266, {70, 3}},
      {80, 70, {30}},
      {128, 150, {40}},
      {8, 24, {17, 1025, 3}},
      {4, 9, {2049}},
  };
  for (const Size& size : sizes)
    for (const FavorOptions& options : kAll) {
      // All for the narrow heads alone: the definition takes its time under sanitizers.
      if (options.stabiliser == FavorStabiliser::batch && size.head_dim > 16) continue;
      if (options.kernel == FavorKernel::relu && size.head_dim > 33) continue;
      SCOPED_TRACE(cat("head_dim ", size.head_dim, ", features ", size.features));
      FavorCall in = call(size.lengths, 2, size.head_dim, size.features, options);
      Context reference = definition();
      FavorCall exact = in.as_f64();
      const std::vector<double> want = values_of(received(reference, exact).view());
      expect_close(received(ctx(), in).view(), want, 2049);
      // The queries of a cell give 1 each.
      const std::vector<int32_t> offsets = in.cells().offsets;
      const auto rows = static_cast<size_t>(offsets.back());
      for (size_t cell = 0; cell < size.lengths.size(); ++cell)
        for (size_t head = 0; head < 2; ++head) {
          const auto begin = want.begin() + static_cast<ptrdiff_t>(head * rows) + offsets[cell];
          EXPECT_NEAR(std::accumulate(begin, begin + size.lengths[cell], 0.0), size.lengths[cell],
                      1e-9);
        }
    }
}

// Only q and k are rounded: the sums stay f32, and so does what is received.
TEST_P(FavorAttentionReceivedTest, SixteenBitTypesAgreeWithTheDefinition) {
  if (!on_cuda()) GTEST_SKIP() << "the CPU computes in f32 and f64";
  for (const DType type : {DType::bf16, DType::f16})
    for (const int64_t head_dim : {7, 64, 128}) {
      SCOPED_TRACE(cat(type, ", head_dim ", head_dim));
      store(type);
      for (const FavorOptions& options : kAll) {
        FavorCall in = call({0, 1, 17, 70}, 2, head_dim, 44, options);
        FavorCall exact = in.as_f64();
        Context reference = definition();
        const Tensor got = received(ctx(), in);
        EXPECT_EQ(got.dtype(), DType::f32);
        expect_close(got.view(), values_of(received(reference, exact).view()), 2048);
      }
    }
}

// Every u of a key is far below 0, and features behind the last one would be far above the shift.
TEST_P(FavorAttentionReceivedTest, SmallFeaturesStayFinite) {
  FavorCall in = call({3}, 1, 1, 1);
  in.q = tensor({3, 1}, {0.1, 0.2, 0.3});
  in.k = tensor({3, 1}, {20, 19.5, 20.5});  // u + s is 200 below 0
  in.projection = tensor({1, 1}, {-20});
  FavorCall exact = in.as_f64();
  Context reference = definition();
  expect_close(received(ctx(), in).view(), values_of(received(reference, exact).view()), 16);
}

TEST_P(FavorAttentionReceivedTest, LargeTokensStayFinite) {
  for (const DType type : storage_types()) {
    store(type);
    FavorCall in = call({70}, 1, 64, 40, {}, 30.0);
    double sum = 0;
    for (const double x : values_of(received(ctx(), in).view())) sum += x;
    EXPECT_NEAR(sum, 70, 1e-3);
  }
}

// What lies behind the end of a cell is another cell: nothing of it may be touched.
TEST_P(FavorAttentionReceivedTest, NanStaysInItsCell) {
  for (const DType type : storage_types()) {
    store(type);
    FavorCall in = call({20, 20, 20}, 1, 64, 70);
    for (Tensor* t : {&in.q, &in.k}) {
      std::vector<double> values = values_of(t->view());
      for (size_t i = 20 * 64; i < 40 * 64; ++i) values[i] = NAN;
      *t = tensor_of(t->shape(), type, values);
    }
    const std::vector<double> values = values_of(received(ctx(), in).view());
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(std::isnan(values[i]), i >= 20 && i < 40) << i;
  }
}

TEST_P(FavorAttentionReceivedTest, ThreadsAndBatchMatesDoNotChangeABit) {
  FavorCall in = call({33, 1030, 0, 150}, 2, 24, 30);
  const Tensor all = received(ctx(), in);
  Context single(test_device(), {.threads = 1, .reference = GetParam().reference});
  expect_same_bits(received(single, in).view(), all.view());
  const std::vector<double> values = values_of(all.view());
  const std::vector<int32_t> offsets = in.cells().offsets;
  for (size_t cell = 0; cell < in.lengths.size(); ++cell) {
    FavorCall only = in.only(cell);
    const std::vector<double> alone = values_of(received(ctx(), only).view());
    const auto length = static_cast<size_t>(in.lengths[cell]);
    for (size_t head = 0; head < 2; ++head)
      for (size_t m = 0; m < length; ++m)
        ASSERT_EQ(alone[head * length + m],
                  values[head * 1213 + static_cast<size_t>(offsets[cell]) + m]);
  }
}

TEST_P(FavorAttentionReceivedTest, UnalignedTensorsGiveTheSameBits) {
  for (const DType type : storage_types()) {
    store(type);
    FavorCall in = call({33, 5}, 2, 16, 20);
    in.forward(ctx());
    const PackedCells packed = in.cells();
    const auto moved = [&](const Tensor& t) {
      std::vector<double> values = values_of(t.view());
      values.insert(values.begin(), 0);
      return tensor_of({t.numel() + 1}, t.dtype(), values);
    };
    Tensor q = moved(in.q), k = moved(in.k), projection = moved(in.projection);
    Tensor to = poisoned({2 * 38 + 1}, sum_type(type));
    favor_attention_received(ctx(), behind_first(q, in.q.shape()), behind_first(k, in.k.shape()),
                             in.packing(packed), 2, behind_first(projection, in.projection.shape()),
                             in.options, in.context(), behind_first(to, {2, 38}));
    expect_same_bits(behind_first(to, {2, 38}), received(ctx(), in).view());
  }
}

TEST_P(FavorAttentionReceivedTest, FitsTheSharedMemoryOfEveryDevice) {
  const Capability smallest(75);
  for (const int64_t head_dim : {64, 128}) {
    FavorCall in = call({3}, 1, head_dim, 5);
    received(ctx(), in);
  }
}

// Threads, warps and blocks may run in any order.
TEST_P(FavorAttentionReceivedTest, SchedulingDoesNotChangeABit) {
  if (!kCudaEmulated || !on_cuda()) GTEST_SKIP() << "only the emulated device can be told an order";
  for (const int64_t head_dim : {64, 128}) {
    FavorCall in = call({70, 1030}, 2, head_dim, 70, {FavorStabiliser::batch});
    const Tensor want = received(ctx(), in);
    for (const gpu::Order order : {gpu::Order::reverse, gpu::Order::random}) {
      gpu::emulator_options().order = order;
      const Tensor got = received(ctx(), in);
      gpu::emulator_options().order = gpu::Order::forward;
      expect_same_bits(got.view(), want.view());
    }
  }
}

TEST_P(FavorAttentionReceivedTest, ErrorsSayWhatWasWanted) {
  FavorCall in = call({2, 1}, 2, 4, 3);
  in.forward(ctx());
  const PackedCells packed = in.cells();
  const auto receive = [&](TensorView k, TensorView to) {
    favor_attention_received(ctx(), in.q.view(), k, in.packing(packed), 2, in.projection.view(),
                             in.options, in.context(), to);
  };
  Tensor k = in.k.clone(), wide = poisoned({3, 9}), right = poisoned({2, 3}),
         turned = poisoned({3, 2});
  expect_error("favor_attention_received: received must be [2, 3]",
               [&] { receive(k.view(), turned.view()); });
  expect_error("favor_attention_received: k must be [3, 8]",
               [&] { receive(wide.view(), right.view()); });
  if (!on_cuda()) return;
  const FavorCall too_wide = call({3}, 1, 129, 5);
  const FavorContext context = FavorContext::take(ctx().activations(), 1, 1, 5, 129, dtype());
  Tensor to = poisoned({1, 3}, sum_type(dtype()));
  expect_error("favor_attention_received: heads on cuda:0 are at most 128 wide, got 129", [&] {
    favor_attention_received(ctx(), too_wide.q.view(), too_wide.k.view(),
                             packing_over(std::vector<int32_t>{0, 3}), 1,
                             too_wide.projection.view(), {}, context, to.view());
  });
}

}  // namespace
}  // namespace scgraft
