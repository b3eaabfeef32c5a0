// SPDX-License-Identifier: Apache-2.0
// Recorded activations and gradients of the original programs against trace_checkpoint().
#include <filesystem>
#include <map>

#include "io/npz.h"
#include "tests/testing/op_test.h"
#include "training/trace.h"

namespace scgraft {
namespace {

using Arrays = std::map<std::string, Tensor>;

// What the recordings allow: activations 5e-6 absolute, gradients 2e-5 of the largest element.
constexpr double kActivation = 5e-6;
constexpr double kGradient = 2e-5;
constexpr double kGradientFloor = 1e-7;

std::string folder_of(const std::string& name) { return shared_path("golden/" + name); }

Arrays arrays_of(const std::string& name, const std::string& file) {
  return read_npz(folder_of(name) + "/" + file);
}

Arrays trace(const std::string& name, std::optional<std::string> gradient = {}, int threads = 0) {
  Context ctx(Device::cpu(), {.threads = threads});
  return trace_checkpoint(ctx, folder_of(name), arrays_of(name, "arrays.npz"),
                          {.gradient = std::move(gradient)});
}

// Largest difference on tokens that are not padding.
double difference(const Tensor& got, const Tensor& want, const Tensor& padding) {
  EXPECT_EQ(got.shape(), want.shape());
  if (got.shape() != want.shape()) return INFINITY;
  const auto a = values_of(got.view()), b = values_of(want.view()), pad = values_of(padding.view());
  const bool by_token =
      want.rank() >= 2 && want.dim(0) == padding.dim(0) && want.dim(1) == padding.dim(1);
  const size_t width = by_token ? a.size() / pad.size() : 1;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (by_token && pad[i / width] != 0) continue;
    worst = std::max(worst, std::abs(a[i] - b[i]));
    if (!std::isfinite(a[i])) return INFINITY;
  }
  return worst;
}

// A loss is one number in f32, here up to a thousand: its last digit is already above 5e-6, so it
// is compared relative to its size.
double scale_of(const Tensor& want) {
  return want.rank() == 0 ? std::max(1.0, std::abs(values_of(want.view())[0])) : 1.0;
}

void expect_activations(const std::string& name, const std::vector<std::string>& outputs) {
  const Arrays want = arrays_of(name, "arrays.npz");
  const Arrays got = trace(name);
  for (const std::string& output : outputs) {
    SCOPED_TRACE(name + " " + output);
    ASSERT_TRUE(want.contains(output));
    ASSERT_TRUE(got.contains(output)) << "trace has no such activation";
    EXPECT_LE(difference(got.at(output), want.at(output), want.at("src_key_padding_mask")),
              kActivation * scale_of(want.at(output)));
  }
}

void expect_gradients(const std::string& name, const std::string& loss, size_t count) {
  const Arrays want = arrays_of(name, loss.empty() ? "grads.npz" : "grads_" + loss + ".npz");
  const Arrays got = trace(name, loss);
  ASSERT_EQ(want.size(), count);
  for (const auto& [parameter, gradient] : want) {
    SCOPED_TRACE(name + " " + loss + " " + parameter);
    ASSERT_TRUE(got.contains(parameter)) << "trace has no such gradient";
    ASSERT_EQ(got.at(parameter).shape(), gradient.shape());
    const auto a = values_of(got.at(parameter).view()), b = values_of(gradient.view());
    double largest = 0, worst = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(b[i]));
      worst = std::max(worst, std::abs(a[i] - b[i]));
    }
    EXPECT_LE(worst, kGradient * largest + kGradientFloor) << "of " << largest;
  }
}

const std::vector<std::string> kLayers = {
    "gene_emb",   "value_emb", "layer0_in",       "layer0_attn_out", "layer0_norm1",
    "layer0_out", "layer1_in", "layer1_attn_out", "layer1_norm1",    "layer1_out"};

std::vector<std::string> with_layers(std::vector<std::string> more) {
  more.insert(more.begin(), kLayers.begin(), kLayers.end());
  return more;
}

TEST(Golden, ScgptBaseActivations) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  expect_activations(
      "scgpt_base", with_layers({"transformer_output", "out_mlm_output", "out_cell_emb",
                                 "out_cls_output", "out_mvc_output", "out_loss_ecs", "out_loss_cce",
                                 "loss_cls", "loss_cls_weighted", "loss_mse", "loss_mvc"}));
}

TEST(Golden, ScgptBaseGradients) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  expect_gradients("scgpt_base", "cls", 43);
  expect_gradients("scgpt_base", "multi", 52);
}

TEST(Golden, PublishedNamesLoadAsTheSameNetwork) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_flash_named_ckpt");
  expect_activations("scgpt_flash_named_ckpt",
                     {"out_mlm_output", "out_cell_emb", "out_mvc_output"});
}

class ScpeftGolden : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Cases, ScpeftGolden,
                         ::testing::Values("scpeft_scgpt_none", "scpeft_scgpt_lora"),
                         [](const auto& c) { return c.param; });

TEST_P(ScpeftGolden, ActivationsAndGradients) {
  SCGRAFT_NEEDS_SHARED("golden/" + GetParam());
  const Arrays want = arrays_of(GetParam(), "arrays.npz");
  std::vector<std::string> outputs;
  for (const auto& [name, tensor] : want)
    if (name.starts_with("layer") || name.starts_with("out_") || name.starts_with("loss") ||
        name == "gene_emb" || name == "value_emb" || name == "transformer_output")
      outputs.push_back(name);
  EXPECT_GE(outputs.size(), 5u);
  expect_activations(GetParam(), outputs);
  const size_t gradients = arrays_of(GetParam(), "grads.npz").size();
  EXPECT_GE(gradients, 5u);
  expect_gradients(GetParam(), "", gradients);
}

TEST(Golden, ThreadsChangeNoBit) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  const Arrays one = trace("scgpt_base", "multi", 1), two = trace("scgpt_base", "multi", 2);
  ASSERT_EQ(one.size(), two.size());
  for (const auto& [name, tensor] : one) {
    SCOPED_TRACE(name);
    expect_same_bits(two.at(name).view(), tensor.view());
  }
}

}  // namespace
}  // namespace scgraft
