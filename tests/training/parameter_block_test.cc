// SPDX-License-Identifier: Apache-2.0
#include "training/parameter_block.h"

#include <cmath>

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

class ParameterBlockTest : public ::testing::TestWithParam<DType> {
 protected:
  ParameterBlockTest() {
    matrix_ = &set_.add("a.weight", tensor_of({2, 3}, GetParam(), {1, -2, 3, -4, 5, -6}));
    vector_ = &set_.add("a.bias", tensor_of({3}, GetParam(), {0.5, -0.25, 2}));
  }
  static void put(Tensor& tensor, const std::vector<double>& values) {
    const Tensor from = tensor_of(tensor.shape(), tensor.dtype(), values);
    std::memcpy(tensor.view().data(), from.view().data(), static_cast<size_t>(from.nbytes()));
  }
  Context ctx_{Device::cpu(), {.threads = 1}};
  ParameterSet set_;
  Parameter* matrix_;
  Parameter* vector_;
};
INSTANTIATE_TEST_SUITE_P(Types, ParameterBlockTest, ::testing::Values(DType::f32, DType::f64),
                         [](const auto& type) { return std::string(name_of(type.param)); });

TEST_P(ParameterBlockTest, TakesOverStorageAndKeepsNamesShapesAndValues) {
  const ParameterBlock block({matrix_, vector_}, 0.1);
  EXPECT_EQ(block.parameters(), (std::vector<Parameter*>{matrix_, vector_}));
  EXPECT_EQ(matrix_->name, "a.weight");
  EXPECT_EQ(matrix_->value.shape(), (Shape{2, 3}));
  EXPECT_EQ(values_of(matrix_->value.view()), (std::vector<double>{1, -2, 3, -4, 5, -6}));
  EXPECT_EQ(values_of(vector_->value.view()), (std::vector<double>{0.5, -0.25, 2}));
  ASSERT_TRUE(matrix_->trainable());
  EXPECT_EQ(values_of(matrix_->grad.view()), std::vector<double>(6, 0.0));
  EXPECT_GE(block.numel(), 9);
  for (const Parameter* p : {matrix_, vector_})
    EXPECT_EQ(reinterpret_cast<uintptr_t>(std::as_const(p->value).view().data()) % 64, 0U);
}

TEST_P(ParameterBlockTest, NormIsOverAllGradients) {
  ParameterBlock block({matrix_, vector_}, 0);
  put(matrix_->grad, {1, 2, 0, 0, 0, 2});
  put(vector_->grad, {4, 0, 0});
  EXPECT_DOUBLE_EQ(block.gradient_norm(ctx_), 5);
  block.zero_gradients(ctx_);
  EXPECT_EQ(block.gradient_norm(ctx_), 0);
}

// The first step of AdamW moves every element by the rate against the sign of its gradient; the
// epsilon of 1e-8 is far below 1e-6 of that.
TEST_P(ParameterBlockTest, UpdatesWithWeightDecayOnMatricesOnly) {
  ParameterBlock block({matrix_, vector_}, 0.1);
  put(matrix_->grad, {1, 1, 1, -1, -1, -1});
  put(vector_->grad, {2, -2, 2});
  block.gradient_norm(ctx_);
  ASSERT_TRUE(block.update(ctx_, {.learning_rate = 0.01, .max_norm = 0, .step = 1}));
  const std::vector<double> before = {1, -2, 3, -4, 5, -6};
  const std::vector<double> after = values_of(matrix_->value.view());
  for (size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(after[i], before[i] * (1 - 0.01 * 0.1) - (i < 3 ? 0.01 : -0.01), 1e-6);
  const std::vector<double> bias = values_of(vector_->value.view());
  EXPECT_NEAR(bias[0], 0.5 - 0.01, 1e-6) << "no decay of vectors";
  EXPECT_NEAR(bias[1], -0.25 + 0.01, 1e-6);
}

TEST_P(ParameterBlockTest, SkipsAnUpdateWithoutAFiniteNorm) {
  ParameterBlock block({matrix_, vector_}, 0.1);
  put(vector_->grad, {NAN, 0, 0});
  EXPECT_FALSE(std::isfinite(block.gradient_norm(ctx_)));
  EXPECT_FALSE(block.update(ctx_, {.learning_rate = 0.01, .max_norm = 1, .step = 1}));
  EXPECT_EQ(values_of(matrix_->value.view()), (std::vector<double>{1, -2, 3, -4, 5, -6}));
}

TEST_P(ParameterBlockTest, RestoresASnapshotBitForBit) {
  ParameterBlock block({matrix_, vector_}, 0.1);
  const std::vector<Tensor> kept = block.snapshot();
  put(matrix_->grad, {1, 2, 3, 4, 5, 6});
  block.gradient_norm(ctx_);
  block.update(ctx_, {.learning_rate = 1, .max_norm = 0, .step = 1});
  EXPECT_NE(values_of(matrix_->value.view())[0], 1);
  block.restore(kept);
  expect_same_bits(matrix_->value.view(), kept[0].view());
  expect_same_bits(vector_->value.view(), kept[1].view());
  expect_error("a snapshot of 0", [&] { block.restore({}); });
}

TEST(ParameterBlock, WantsOneType) {
  ParameterSet set;
  Parameter& a = set.add("a", Tensor({2}, DType::f32));
  Parameter& b = set.add("b", Tensor({2}, DType::f64));
  EXPECT_THROW(ParameterBlock({&a, &b}, 0), TypeError);
  EXPECT_EQ(ParameterBlock({}, 0).numel(), 0);
}

}  // namespace
}  // namespace scgraft
