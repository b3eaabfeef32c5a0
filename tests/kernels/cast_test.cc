// SPDX-License-Identifier: Apache-2.0
#include "kernels/cast.h"

#include <cmath>

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

class CastTest : public OpTest {
 public:
  Tensor from(DType type, const std::vector<double>& values) {
    return tensor_of({static_cast<int64_t>(values.size())}, type, values);
  }
  Tensor cast_to(DType type, const Tensor& x) {
    Tensor y = tensor_of(x.shape(), type, std::vector<double>(values_of(x.view()).size(), NAN));
    cast(ctx(), x.view(), y.view());
    return y;
  }
};
INSTANTIATE_OP_TEST(CastTest);

TEST_P(CastTest, RoundsToNearestEven) {
  // Between two neighbours, nearer to one, and half-way with the even one below and above.
  const Tensor x = from(DType::f32, {1.0, 1 + 0x1p-9, 1 + 0x1p-8, 1 + 3 * 0x1p-8, -1 - 3 * 0x1p-9,
                                     1 + 0x1p-11, 1 + 3 * 0x1p-11, 65519, 65520, 0x1p-25, 0x1p-24});
  EXPECT_EQ(values_of(cast_to(DType::bf16, x).view()),
            (std::vector<double>{1, 1, 1, 1 + 0x1p-6, -1 - 0x1p-7, 1, 1, 65536, 65536, 0x1p-25,
                                 0x1p-24}));
  EXPECT_EQ(values_of(cast_to(DType::f16, x).view()),
            (std::vector<double>{1, 1 + 0x1p-9, 1 + 0x1p-8, 1 + 3 * 0x1p-8, -1 - 3 * 0x1p-9, 1,
                                 1 + 0x1p-9, 65504, HUGE_VAL, 0, 0x1p-24}));
}

TEST_P(CastTest, ThereAndBackKeepsWhatFits) {
  for (const DType narrow : {DType::bf16, DType::f16})
    for (int64_t n : {0, 1, 7, 8, 9, 255, 2048, 2049, 20000}) {
      SCOPED_TRACE(cat(narrow, " ", n));
      const Tensor x = cast_to(narrow, tensor_of({n}, DType::f32, values_of(random({n}).view())));
      const Tensor wide = cast_to(DType::f32, x);
      EXPECT_EQ(values_of(wide.view()), values_of(x.view()));
      expect_same_bits(cast_to(narrow, wide).view(), x.view());
      expect_same_bits(cast_to(narrow, x).view(), x.view());
    }
}

TEST_P(CastTest, FromEveryTypeToEveryTypeAlignedOrNot) {
  constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
  constexpr int64_t kSize = 2049;
  for (const DType narrow : kTypes)
    for (const DType to : kTypes) {
      SCOPED_TRACE(cat(narrow, " to ", to));
      Tensor x = cast_to(narrow,
                         tensor_of({kSize + 1}, DType::f32, values_of(random({kSize + 1}).view())));
      const Tensor aligned = tensor_of({kSize}, narrow, values_of(behind_first(x, {kSize})));
      const Tensor y = cast_to(to, aligned);
      const Tensor want = tensor_of({kSize}, to, values_of(aligned.view()));
      expect_same_bits(y.view(), want.view());
      Tensor room = tensor_of({kSize + 1}, to, std::vector<double>(kSize + 1, NAN));
      cast(ctx(), behind_first(x, {kSize}), behind_first(room, {kSize}));
      expect_same_bits(behind_first(room, {kSize}), want.view());
    }
}

TEST_P(CastTest, NanAndInfinityStay) {
  const Tensor x = from(DType::f32, {NAN, HUGE_VAL, -HUGE_VAL, -0.0});
  for (const DType narrow : {DType::bf16, DType::f16}) {
    const std::vector<double> y = values_of(cast_to(DType::f32, cast_to(narrow, x)).view());
    EXPECT_TRUE(std::isnan(y[0]));
    EXPECT_EQ(y[1], HUGE_VAL);
    EXPECT_EQ(y[2], -HUGE_VAL);
    EXPECT_TRUE(std::signbit(y[3]) && y[3] == 0);
  }
}

TEST_P(CastTest, RefusesWhatDoesNotFit) {
  const Tensor x = random({3});
  Tensor y = poisoned({4});
  expect_error("cast: x and y must have one shape", [&] { cast(ctx(), x.view(), y.view()); });
}

TEST(Cast, TakesF64OnTheCpu) {
  Context ctx(Device::cpu(), {.threads = 1});
  const Tensor x = tensor_of({2}, DType::f64, {0.1, 1e300});
  Tensor y({2}, DType::f32);
  cast(ctx, x.view(), y.view());
  EXPECT_EQ(y.as<float>()[0], 0.1f);
  EXPECT_TRUE(std::isinf(y.as<float>()[1]));
}

}  // namespace
}  // namespace scgraft
