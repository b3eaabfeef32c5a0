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
  void update(ParameterBlock& block, const AdamWOptions& options, double loss = 1) {
    block.update(ctx_, view_of(&std::as_const(loss), Shape{1}), options);
  }
  static UpdateState state_of(const ParameterBlock& block) {
    UpdateState state;
    std::memcpy(&state, block.state().data(), sizeof state);
    return state;
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
  update(block, {});
  EXPECT_DOUBLE_EQ(state_of(block).norm, 5);
  block.zero_gradients(ctx_);
  update(block, {});
  EXPECT_EQ(state_of(block).norm, 0);
  EXPECT_EQ(state_of(block).steps_done, 2);
}

// The first step of AdamW moves every element by the rate against the sign of its gradient; the
// epsilon of 1e-8 is far below 1e-6 of that.
TEST_P(ParameterBlockTest, UpdatesWithWeightDecayOnMatricesOnly) {
  ParameterBlock block({matrix_, vector_}, 0.1);
  put(matrix_->grad, {1, 1, 1, -1, -1, -1});
  put(vector_->grad, {2, -2, 2});
  update(block, {.learning_rate = 0.01, .max_norm = 0});
  ASSERT_EQ(state_of(block).outcome, StepOutcome::updated);
  const std::vector<double> before = {1, -2, 3, -4, 5, -6};
  const std::vector<double> after = values_of(matrix_->value.view());
  for (size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(after[i], before[i] * (1 - 0.01 * 0.1) - (i < 3 ? 0.01 : -0.01), 1e-6);
  const std::vector<double> bias = values_of(vector_->value.view());
  EXPECT_NEAR(bias[0], 0.5 - 0.01, 1e-6) << "no decay of vectors";
  EXPECT_NEAR(bias[1], -0.25 + 0.01, 1e-6);
}

// The step after the bad one is good, and was enqueued before anybody knew.
TEST_P(ParameterBlockTest, ABadStepHoldsLaterOnesUntilTheHostSaysSo) {
  for (const bool loss : {false, true}) {
    ParameterBlock block({matrix_, vector_}, 0.1);
    const std::vector<double> values = values_of(matrix_->value.view());
    put(vector_->grad, {loss ? 1 : NAN, 0, 0});
    update(block, {.max_norm = 1}, loss ? INFINITY : 1);
    EXPECT_EQ(state_of(block).outcome, StepOutcome::not_finite);
    EXPECT_EQ(std::isfinite(state_of(block).norm), loss);
    put(vector_->grad, {1, 0, 0});
    update(block, {.max_norm = 1});
    EXPECT_EQ(state_of(block).outcome, StepOutcome::held);
    EXPECT_EQ(state_of(block).steps_done, 0);
    EXPECT_EQ(values_of(matrix_->value.view()), values);
    block.resume(ctx_);
    update(block, {.max_norm = 1});
    EXPECT_EQ(state_of(block).outcome, StepOutcome::updated);
    EXPECT_EQ(state_of(block).steps_done, 1);
    EXPECT_NE(values_of(matrix_->value.view()), values);
  }
}

TEST_P(ParameterBlockTest, TheLossScaleIsHalvedByABadStepAndTakenOutOfTheGradient) {
  ParameterBlock block({matrix_, vector_}, 0.1);
  block.set_loss_scale(LossScale(DType::f16));
  EXPECT_EQ(values_of(block.loss_scale()), std::vector<double>{65536});
  put(vector_->grad, {INFINITY, 0, 0});
  update(block, {});
  EXPECT_EQ(state_of(block).outcome, StepOutcome::repeat);
  EXPECT_EQ(values_of(block.loss_scale()), std::vector<double>{32768});
  block.resume(ctx_);
  put(vector_->grad, {3 * 32768, 4 * 32768, 0});
  update(block, {});
  EXPECT_EQ(state_of(block).outcome, StepOutcome::updated);
  EXPECT_EQ(state_of(block).norm, 5);
  EXPECT_EQ(state_of(block).scale_used, 32768);
}

TEST_P(ParameterBlockTest, RestoresASnapshotBitForBit) {
  ParameterBlock block({matrix_, vector_}, 0.1);
  const std::vector<Tensor> kept = block.snapshot();
  put(matrix_->grad, {1, 2, 3, 4, 5, 6});
  update(block, {.learning_rate = 1, .max_norm = 0});
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
