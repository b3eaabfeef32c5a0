// SPDX-License-Identifier: Apache-2.0
#include "kernels/relu_dropout.h"

#include <cmath>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr Dropout kDropout{.p = 0.25f, .site = 1024 + 2};

class ReluDropoutTest : public OpTest {};
INSTANTIATE_OP_TEST(ReluDropoutTest);

TEST_P(ReluDropoutTest, RemembersOneBitPerPositiveElement) {
  const Tensor x = tensor({1, 10}, {1, -1, 0, 2, -3, 4, 5, -6, 7, -8});
  Tensor y = poisoned({1, 10});
  const Tensor stale = bytes({0, 0xff});  // bits behind the last feature must go
  Tensor bits(Shape{1, 2}, DType::u8, test_device());
  copy(stale.view().reshape({1, 2}), bits.view());
  relu_dropout(ctx(), x.view(), {}, nullptr, y.view(), bits.view());
  expect_close(y.view(), {1, 0, 0, 2, 0, 4, 5, 0, 7, 0});
  EXPECT_EQ(values_of(bits.view())[0], 0b01101001);
  EXPECT_EQ(values_of(bits.view())[1], 0b00000001);
  const Tensor dy = tensor({1, 10}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  Tensor dx = poisoned({1, 10});
  relu_dropout_backward(ctx(), dy.view(), bits.view(), {}, dx.view());
  expect_close(dx.view(), {1, 0, 0, 4, 0, 6, 7, 0, 9, 0});
}

// p = 1/4: what is kept is divided by 3/4.
TEST_P(ReluDropoutTest, AwkwardSizesFollowTheDocumentedMask) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (const auto& [rows, dim] : awkward_shapes())
      for (Dropout dropout : {Dropout{}, kDropout}) {
        SCOPED_TRACE(cat("rows ", rows, ", dim ", dim, ", p ", dropout.p));
        const PackedCells cells = awkward_cells(rows);
        const Packing packing = cells.packing();
        const Tensor x = random({rows, dim});
        const Tensor dy = random({rows, dim});
        Tensor y = poisoned({rows, dim}), dx = poisoned({rows, dim});
        Tensor bits(Shape{rows, (dim + 7) / 8}, DType::u8, test_device());
        relu_dropout(ctx(), x.view(), dropout, &packing, y.view(), bits.view());
        relu_dropout_backward(ctx(), dy.view(), bits.view(), dropout, dx.view());

        std::vector<double> factor(static_cast<size_t>(rows * dim), 1.0);
        if (dropout.active()) {
          factor = hidden_mask(ctx(), dropout, cells, dim);
          for (double v : factor) ASSERT_TRUE(v == 0 || std::abs(v - 4.0 / 3) < 1e-6);
        }
        const std::vector<double> in = values_of(x.view());
        for (size_t i = 0; i < in.size(); ++i)
          if (!(in[i] > 0)) factor[i] = 0;
        expect_close(y.view(), product(in, factor));
        expect_close(dx.view(), product(values_of(dy.view()), factor));
      }
  }
}

TEST(ReluDropout, BackwardMatchesFiniteDifferences) {
  const PackedCells cells({2, 3}, {4, 5});
  const Packing packing = cells.packing();
  Context ctx = reference_context();
  for (Dropout dropout : {Dropout{}, kDropout}) {
    Tensor x = random_values({5, 19}, DType::f64, 1);
    for (int64_t i = 0; i < x.numel(); ++i)  // away from the kink
      if (std::abs(x.as<double>()[i]) < 1e-3) x.as<double>()[i] = 0.5;
    const Tensor weight = random_values({5, 19}, DType::f64, 2);
    Tensor y(Shape{5, 19}, DType::f64), dx(Shape{5, 19}, DType::f64);
    Tensor bits(Shape{5, 3}, DType::u8);
    const auto loss = [&] {
      relu_dropout(ctx, x.view(), dropout, &packing, y.view(), bits.view());
      return dot(weight.view(), y.view());
    };
    loss();
    relu_dropout_backward(ctx, weight.view(), bits.view(), dropout, dx.view());
    expect_gradient(x, loss, dx.view());
  }
}

// The rows of a cell come out the same whatever else is in the batch, and wherever they lie.
TEST_P(ReluDropoutTest, OtherCellsOfTheBatchChangeNothing) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    constexpr int64_t kDim = 40;
    const PackedCells together({5, 90, 7}, {21, 22, 23});
    const PackedCells shuffled({7, 90}, {23, 22});
    const Packing a = together.packing();
    const Packing b = shuffled.packing();
    const Tensor x = random({102, kDim});
    Tensor y = poisoned({102, kDim});
    relu_dropout(ctx(), x.view(), kDropout, &a, y.view(), {});

    Tensor other_x = zeros({97, kDim}), other_y = poisoned({97, kDim});
    copy(x.view().rows(95, 102), other_x.view().rows(0, 7));
    copy(x.view().rows(5, 95), other_x.view().rows(7, 97));
    relu_dropout(ctx(), other_x.view(), kDropout, &b, other_y.view(), {});
    expect_same_bits(other_y.view().rows(0, 7), y.view().rows(95, 102));
    expect_same_bits(other_y.view().rows(7, 97), y.view().rows(5, 95));
  }
}

TEST_P(ReluDropoutTest, WorksInPlaceAndOnAnyThreads) {
  const PackedCells cells = awkward_cells(257);
  const Packing packing = cells.packing();
  const Tensor x = random({257, 521});
  const Tensor dy = random({257, 521});
  Tensor y = poisoned({257, 521}), dx = poisoned({257, 521});
  Tensor bits(Shape{257, 66}, DType::u8, test_device());
  relu_dropout(ctx(), x.view(), kDropout, &packing, y.view(), bits.view());
  relu_dropout_backward(ctx(), dy.view(), bits.view(), kDropout, dx.view());
  for (int threads : {1, 3, 7}) {
    Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
    Tensor in_place = x.clone(), grad = dy.clone();
    Tensor other_bits(Shape{257, 66}, DType::u8, test_device());
    relu_dropout(other, in_place.view(), kDropout, &packing, in_place.view(), other_bits.view());
    relu_dropout_backward(other, grad.view(), other_bits.view(), kDropout, grad.view());
    expect_same_bits(in_place.view(), y.view());
    expect_same_bits(other_bits.view(), bits.view());
    expect_same_bits(grad.view(), dx.view());
  }
}

TEST_P(ReluDropoutTest, FastPathAndDefinitionSetTheSameBits) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const PackedCells cells = awkward_cells(257);
    const Packing packing = cells.packing();
    const Tensor x = random_values({257, 521}, dtype(), 9);
    Tensor y = poisoned({257, 521});
    Tensor bits(Shape{257, 66}, DType::u8, test_device()), want(Shape{257, 66}, DType::u8);
    relu_dropout(ctx(), x.view(), kDropout, &packing, y.view(), bits.view());
    Context definition = reference_context();
    const Tensor x64 = in_f64(x);
    Tensor y64(Shape{257, 521}, DType::f64);
    relu_dropout(definition, x64.view(), kDropout, &packing, y64.view(), want.view());
    expect_same_bits(bits.view(), want.view());
  }
}

TEST_P(ReluDropoutTest, NanStaysVisible) {
  const Tensor x = poisoned({1, 9});
  Tensor y = zeros({1, 9});
  Tensor bits(Shape{1, 2}, DType::u8, test_device());
  relu_dropout(ctx(), x.view(), {}, nullptr, y.view(), bits.view());
  for (double v : values_of(y.view())) EXPECT_TRUE(std::isnan(v));
  EXPECT_EQ(values_of(bits.view())[0], 0);
}

TEST_P(ReluDropoutTest, ErrorsNameTheTensorAndTheShapeItShouldHave) {
  const Tensor x = zeros({4, 9});
  Tensor y = zeros({4, 9}), wrong = zeros({4, 8});
  Tensor bits(Shape{4, 1}, DType::u8, test_device());
  expect_error("relu_dropout: y must have the shape of x, [4, 9], got [4, 8]",
               [&] { relu_dropout(ctx(), x.view(), {}, nullptr, wrong.view(), {}); });
  expect_error("relu_dropout: bits must be [4, 2] for 9 features, got [4, 1]",
               [&] { relu_dropout(ctx(), x.view(), {}, nullptr, y.view(), bits.view()); });
  expect_error("relu_dropout: bits must be u8",
               [&] { relu_dropout(ctx(), x.view(), {}, nullptr, y.view(), wrong.view()); });
  expect_error("relu_dropout: dropout 0.25 needs the packing",
               [&] { relu_dropout(ctx(), x.view(), kDropout, nullptr, y.view(), {}); });
  expect_error("relu_dropout_backward: bits must be those of the forward pass, got none",
               [&] { relu_dropout_backward(ctx(), x.view(), {}, {}, y.view()); });
}

}  // namespace
}  // namespace scgraft
