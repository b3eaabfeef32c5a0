// SPDX-License-Identifier: Apache-2.0
// The same networks on a CUDA device: the loss and every gradient against the CPU.
#include "tests/model/scgpt_styles.h"

namespace scgraft {
namespace {

class ScgptStylesOnDevice : public ::testing::TestWithParam<ScgptStyle> {};
INSTANTIATE_TEST_SUITE_P(Styles, ScgptStylesOnDevice, ::testing::ValuesIn(scgpt_styles()),
                         [](const auto& p) { return p.param.name; });

TEST_P(ScgptStylesOnDevice, AgreesWithTheCpu) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine or build has no CUDA device";
  const ScgptStyle& style = GetParam();
  ScgptNetwork here(style.config, style.heads, scgpt_initialiser(7));
  ScgptNetwork there(style.config, style.heads, scgpt_initialiser(7));
  Context cpu(Device::cpu(), {.threads = 1}), cuda(Device::cuda());
  there.move_to(cuda.device());
  make_trainable(here.parameters().all());
  make_trainable(there.parameters().all());
  const double want = styled_loss(cpu, here, style, DType::f32, true);
  const double got = styled_loss(cuda, there, style, DType::f32, true);
  EXPECT_NEAR(got, want, 1e-4 * std::max(1.0, std::abs(want)));
  const auto parameters = here.parameters().all(), others = there.parameters().all();
  // Of a bias that the next norm takes away the gradient is rounding alone: against the largest.
  double largest = 0;
  for (Parameter* p : parameters)
    for (const double v : values_of(p->grad.view())) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < parameters.size(); ++i) {
    SCOPED_TRACE(parameters[i]->name);
    const Tensor gradient = others[i]->grad.to(Device::cpu());
    const auto a = values_of(gradient.view()), b = values_of(parameters[i]->grad.view());
    for (size_t j = 0; j < a.size(); ++j) ASSERT_NEAR(a[j], b[j], 1e-5 * largest);
  }
}

}  // namespace
}  // namespace scgraft
