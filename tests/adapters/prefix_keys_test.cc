// SPDX-License-Identifier: Apache-2.0
// Rows of a prefix as keys and values alone (model/prefix_keys.h) against rows among the tokens,
// which a tap asks for.
#include "tests/adapters/tiny_backbone.h"

namespace scgraft {
namespace {

struct Pass {
  Tensor out;
  std::vector<Tensor> gradients;
};

// One pass and its gradients, of  sum(cos(i) out_i).
Pass run(Backbone& network, const std::vector<Parameter*>& parameters, LayerRows rows,
         bool joined) {
  const TinyBatch cells;
  Context ctx;
  Arena::Scope scope(ctx.activations());
  const int64_t n = rows == LayerRows::cls ? cells.batch().cells() : cells.batch().tokens();
  Pass pass{.out = Tensor({n, network.dim()}, DType::f64), .gradients = {}};
  for (Parameter* p : parameters)
    for (int64_t i = 0; i < p->grad.numel(); ++i) p->grad.as<double>()[i] = 0;
  const Tap tap = [](const std::string&, ConstTensorView) {};
  const EncodeOptions options{
      .training = false, .save = true, .rows = rows, .tap = joined ? &tap : nullptr};
  network.encode(ctx, cells.batch(), options, pass.out.view());
  Tensor dout(pass.out.shape(), DType::f64);
  for (int64_t i = 0; i < dout.numel(); ++i)
    dout.as<double>()[i] = std::cos(static_cast<double>(i));
  network.encode_backward(ctx, cells.batch(), options, dout.view());
  for (const Parameter* p : parameters) pass.gradients.push_back(p->grad.converted(DType::f64));
  return pass;
}

void expect_close(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape());
  double largest = 0, apart = 0;
  for (int64_t i = 0; i < want.numel(); ++i) {
    largest = std::max(largest, std::abs(want.as<double>()[i]));
    apart = std::max(apart, std::abs(got.as<double>()[i] - want.as<double>()[i]));
  }
  EXPECT_GT(largest, 0) << what;
  EXPECT_LE(apart, 1e-12 * std::max(1.0, largest)) << what;
}

struct Case {
  const char* name;
  std::unique_ptr<Backbone> (*make)();
  LayerRows rows;
};
class PrefixKeysTest : public ::testing::TestWithParam<Case> {
 protected:
  // The same adapter, with values that are none of its start, both ways.
  void compare(AdapterOptions options) {
    const auto network = GetParam().make();
    const auto adapter = make_adapter(options, *network, 7);
    const std::vector<Parameter*> parameters = adapter->parameters();
    for (Parameter* p : parameters)
      for (int64_t i = 0; i < p->value.numel(); ++i)
        p->value.as<double>()[i] += 0.1 * std::sin(static_cast<double>(i) + 1);
    adapter->attach(*network);
    make_trainable(parameters);
    network->parameters_updated();
    const Pass joined = run(*network, parameters, GetParam().rows, true);
    const Pass alone = run(*network, parameters, GetParam().rows, false);
    expect_close(alone.out, joined.out, "out");
    for (size_t i = 0; i < parameters.size(); ++i)
      expect_close(alone.gradients[i], joined.gradients[i], parameters[i]->name);
    adapter->detach(*network);
  }
};
constexpr Case kCases[] = {
    {"scgpt", []() -> std::unique_ptr<Backbone> { return tiny_network(1, 3, 16, DType::f64); },
     LayerRows::all},
    {"scgpt_cls", []() -> std::unique_ptr<Backbone> { return tiny_network(1, 3, 16, DType::f64); },
     LayerRows::cls},
    {"prenorm",
     []() -> std::unique_ptr<Backbone> { return tiny_network(1, 3, 16, DType::f64, true); },
     LayerRows::all},
    {"geneformer", []() -> std::unique_ptr<Backbone> { return tiny_geneformer(1, DType::f64); },
     LayerRows::cls},
    {"scfoundation", []() -> std::unique_ptr<Backbone> { return tiny_scfoundation(1, DType::f64); },
     LayerRows::all}};
INSTANTIATE_TEST_SUITE_P(Backbones, PrefixKeysTest, ::testing::ValuesIn(kCases),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(PrefixKeysTest, AreTheRowsAmongTheTokens) { compare({.type = "prefix", .tokens = 3}); }

TEST_P(PrefixKeysTest, GoThroughWhatIsBesideTheProjections) {
  compare({.type = "prefix+lora", .rank = 2, .targets = {"k", "v"}, .tokens = 3});
  compare({.type = "prefix+hra", .rank = 2, .targets = {"k"}, .tokens = 3});
}

// In the first layer alone they are read above, and join the tokens either way.
TEST_P(PrefixKeysTest, JoinWhereALayerAboveReadsThem) {
  compare({.type = "prefix", .tokens = 3, .first_layer = 0, .last_layer = 0});
  compare({.type = "prefix", .tokens = 3, .first_layer = 1, .last_layer = 1});
}

// More rows than the attention takes in front, and keys and values of another adapter.
TEST_P(PrefixKeysTest, JoinWhereThereIsNoPlaceInFront) {
  compare({.type = "prefix", .tokens = 70});
  compare({.type = "prefix+prefix_tuning", .tokens = 3});
}

}  // namespace
}  // namespace scgraft
