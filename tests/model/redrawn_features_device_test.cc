// SPDX-License-Identifier: Apache-2.0
// Random features that a training draws again, on every device there is.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "model/geneformer/network.h"
#include "model/random_features.h"
#include "tests/model/tiny_scbert.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

std::unique_ptr<ScbertNetwork> tiny_scbert(Device device, bool generalized = false) {
  ScbertConfig config = tiny_scbert_config(8);
  config.generalized = generalized;
  config.tokens = 20;
  auto network = std::make_unique<ScbertNetwork>(config, 12, ScbertNetwork::Heads{.bins = false},
                                                 tiny_scbert_values(1));
  make_trainable({network->linear_site("layers.0.attn.q").weight()});
  network->move_to(device);
  return network;
}

// The result and the gradient of the queries' weight in layer 0.
struct Pass {
  Tensor out, gradient;
};

void expect_same(const Pass& a, const Pass& b) {
  expect_same_bits(a.out.view(), b.out.view());
  expect_same_bits(a.gradient.view(), b.gradient.view());
}

void expect_near(const Pass& a, const Pass& b) {
  const std::vector<double> got = values_of(a.out.view()), want = values_of(b.out.view());
  for (size_t i = 0; i < want.size(); ++i)
    ASSERT_NEAR(got[i], want[i], kGoldenActivation * (1 + std::abs(want[i]))) << i;
  const std::vector<double> g = values_of(a.gradient.view()), of = values_of(b.gradient.view());
  double largest = 0;
  for (const double x : of) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < of.size(); ++i) ASSERT_NEAR(g[i], of[i], kGoldenGradient * largest) << i;
}

class RedrawnFeatures : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()) == "cuda" && cuda_device_count() == 0)
      GTEST_SKIP() << "this machine or build has no CUDA device";
    ctx_ = std::make_unique<Context>(Device::parse(GetParam()), ContextOptions{.threads = 1});
  }
  std::unique_ptr<ScbertNetwork> network(bool generalized = false) const {
    return tiny_scbert(ctx_->device(), generalized);
  }

  // A pass in a step of the training with seed 9.
  Pass pass(ScbertNetwork& net, uint32_t step, bool training = true) {
    return pass(*ctx_, net, step, training);
  }
  static Pass pass(Context& ctx, ScbertNetwork& net, uint32_t step, bool training) {
    const std::vector<int32_t> bins[] = {{0, 3, 7, 9}, {0, 5}};
    const std::vector<float> places[] = {{0, 1, 2, 3}, {4, 7}};
    const std::vector<CellView> cells = {{.cell = 0, .genes = bins[0], .values = places[0]},
                                         {.cell = 1, .genes = bins[1], .values = places[1]}};
    TokenBatch batch;
    batch.assign(ctx, cells);
    ctx.random() = {9, step};
    Arena::Scope scope(ctx.activations());
    const EncodeOptions options{.training = training, .save = true};
    const Shape shape{batch.tokens(), net.dim()};
    const TensorView out = scope.take(shape, DType::f32);
    net.encode(ctx, batch, options, out);
    Pass result{on_host(out), {}};
    Tensor dout(shape, DType::f32);
    for (int64_t i = 0; i < dout.numel(); ++i)
      dout.as<float>()[i] = std::sin(static_cast<float>(i));
    Tensor consumed = dout.to(ctx.device());
    Parameter& weight = *net.linear_site("layers.0.attn.q").weight();
    make_trainable({&weight});  // a gradient of zeros
    net.encode_backward(ctx, batch, options, consumed.view());
    result.gradient = on_host(weight.grad.view());
    return result;
  }

  std::unique_ptr<Context> ctx_;
};
INSTANTIATE_TEST_SUITE_P(Devices, RedrawnFeatures, ::testing::Values("cpu", "cuda"),
                         [](const auto& p) { return std::string(p.param); });

// What a pass gives is a function of its step, in whatever order steps are taken: a run resumes.
TEST_P(RedrawnFeatures, AreThoseOfTheStep) {
  const auto fixed = network(), redrawn = network();
  redrawn->redraw_features(3);
  const Pass stored = pass(*fixed, 0);
  expect_same(pass(*redrawn, 0), stored);
  expect_same(pass(*redrawn, 2), stored);
  const Pass first = pass(*redrawn, 3), second = pass(*redrawn, 6);
  EXPECT_NE(values_of(first.out.view()), values_of(stored.out.view()));
  EXPECT_NE(values_of(first.out.view()), values_of(second.out.view()));
  expect_same(pass(*redrawn, 5), first);
  expect_same(pass(*redrawn, 1), stored);
  const auto resumed = network();
  resumed->redraw_features(3);
  expect_same(pass(*resumed, 7), second);
}

// Forward and backward: the same bits as with those features in the file.
TEST_P(RedrawnFeatures, TakeThePlaceOfTheParameters) {
  for (const bool generalized : {false, true}) {
    const auto redrawn = network(generalized), loaded = network(generalized);
    redrawn->redraw_features(4);
    uint32_t layer = 0;
    for (Parameter* p : loaded->parameters().all()) {
      if (!p->name.ends_with("projection_matrix")) continue;
      Tensor drawn(p->value.shape(), DType::f32);
      draw_features(9, 2, layer++, drawn.view());
      p->value = drawn.to(ctx_->device());
    }
    ASSERT_EQ(layer, 2U);
    expect_same(pass(*redrawn, 8), pass(*loaded, 0));
  }
}

TEST_P(RedrawnFeatures, AreForTrainingOnly) {
  const auto fixed = network(), redrawn = network();
  redrawn->redraw_features(1);
  pass(*redrawn, 5);
  expect_same(pass(*redrawn, 5, false), pass(*fixed, 5, false));
}

TEST_P(RedrawnFeatures, FollowTheParametersToADevice) {
  for (const bool generalized : {false, true}) {
    const auto redrawn = tiny_scbert(Device::cpu(), generalized);
    redrawn->redraw_features(2);
    Context host;
    const Pass there = pass(host, *redrawn, 4, true);
    redrawn->move_to(ctx_->device());
    expect_near(pass(*redrawn, 4), there);
  }
}

TEST(RedrawnFeaturesOf, ANetworkWithoutThemAreRefused) {
  GeneformerConfig config;
  config.vocab = 20;
  config.dim = 16;
  config.heads = 4;
  config.layers = 1;
  config.ffn = 24;
  config.positions = 8;
  GeneformerNetwork network(config, {.words = false}, geneformer_initialiser(1));
  network.redraw_features(0);
  try {
    network.redraw_features(10);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), "E-REDRAW");
    EXPECT_NE(std::string(error.what()).find("geneformer has no random features"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace scgraft
