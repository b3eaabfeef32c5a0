// SPDX-License-Identifier: Apache-2.0
// scGPT's value styles, batch norms, flags, batch labels and heads: gradients against finite
// differences, what is refused, and that a folder brings everything back.
#include "tests/model/scgpt_styles.h"

#include <nlohmann/json.hpp>

#include "io/output.h"
#include "model/scgpt/load.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

class ScgptStyles : public ::testing::TestWithParam<ScgptStyle> {};
INSTANTIATE_TEST_SUITE_P(Styles, ScgptStyles, ::testing::ValuesIn(scgpt_styles()),
                         [](const auto& p) { return p.param.name; });

ScgptNetwork network_of(const ScgptStyle& style, DType type) {
  return ScgptNetwork(style.config, style.heads, scgpt_initialiser(7, type));
}

// As a checkpoint that was trained: batch norms have collected something.
void train_batch_norms(ScgptNetwork& net) {
  for (Parameter* p : net.buffers().all()) {
    if (p->value.dtype() == DType::i64) continue;
    visit_real(p->value.dtype(), [&]<class T>(Type<T>) {
      for (int64_t i = 0; i < p->value.numel(); ++i)
        p->value.as<T>()[i] += static_cast<T>(0.1 * static_cast<double>(i + 1));
    });
  }
}

TEST_P(ScgptStyles, EveryParameterMatchesFiniteDifferences) {
  Context ctx(Device::cpu(), {.threads = 1});
  const ScgptStyle& style = GetParam();
  ScgptNetwork net = network_of(style, DType::f64);
  train_batch_norms(net);
  const std::vector<Parameter*> all = net.parameters().all();
  make_trainable(all);
  styled_loss(ctx, net, style, DType::f64, true);
  for (Parameter* p : all) {
    SCOPED_TRACE(p->name);
    Tensor gradient = p->grad.clone();
    if (p->name == "pert_encoder.weight") {
      // The row of padding is not trained, though flag 2 would be as good as another.
      EXPECT_EQ(values_of(gradient.view().rows(2, 3)), std::vector<double>(4));
    }
    expect_gradient(
        p->value,
        [&] {
          net.parameters_updated();
          return styled_loss(ctx, net, style, DType::f64, false);
        },
        gradient.view());
  }
}

// The original has a dropout behind its value network, and none behind its table of categories.
TEST(ScgptStyle, CategoriesAreNotDropped) {
  Context ctx(Device::cpu(), {.threads = 1});
  for (ScgptStyle style : {scgpt_styles()[0], scgpt_styles()[3]}) {
    SCOPED_TRACE(style.name);
    style.config.dropout = 0.5;
    ScgptNetwork net = network_of(style, DType::f32);
    const StyledCells cells;
    TokenBatch batch;
    batch.assign(ctx, cells.views());
    std::vector<std::vector<double>> tokens;
    const Tap tap = [&](const std::string& name, ConstTensorView view) {
      if (name == "layer0_in") tokens.push_back(values_of(view));
    };
    Tensor out({batch.tokens(), net.dim()}, DType::f32);
    for (const bool training : {false, true}) {
      Arena::Scope scope(ctx.activations());
      net.encode(ctx, batch, {.training = training, .tap = &tap, .flags = cells.flags}, out.view());
    }
    ASSERT_EQ(tokens.size(), 2u);
    EXPECT_EQ(tokens[0] == tokens[1], style.config.value_style == ValueStyle::category);
  }
}

TEST(ScgptStyle, TheFlagOfPaddingIsNotTrained) {
  Context ctx(Device::cpu(), {.threads = 1});
  ScgptStyle style = scgpt_styles()[3];
  style.config.flag_pad = 0;
  ScgptNetwork net = network_of(style, DType::f64);
  make_trainable(net.parameters().all());
  styled_loss(ctx, net, style, DType::f64, true);
  const Tensor& gradient = net.parameters().find("pert_encoder.weight")->grad;
  EXPECT_EQ(values_of(gradient.view().rows(0, 1)), std::vector<double>(4));
  EXPECT_NE(values_of(gradient.view().rows(1, 2)), std::vector<double>(4));
}

TEST(ScgptStyle, BatchNormCollectsWithTheUnbiasedVariance) {
  Context ctx(Device::cpu(), {.threads = 1});
  ParameterSet set;
  const ParameterSource source = scgpt_initialiser(1, DType::f64);
  const ParameterMaker make(set, source);
  BatchNorm norm{.mean = &make.parameter("bn.running_mean", {1}),
                 .var = &make.parameter("bn.running_var", {1}),
                 .batches = &make.parameter("bn.num_batches_tracked", {})};
  const Tensor x = tensor_of({3, 1}, DType::f64, {1, 2, 6});
  Tensor y({3, 1}, DType::f64);
  Arena::Scope scope(ctx.activations());
  norm.forward(ctx, x.view(), true, y.view(), nullptr);
  EXPECT_NEAR(values_of(norm.mean->value.view())[0], 0.1 * 3, 1e-12);
  EXPECT_NEAR(values_of(norm.var->value.view())[0], 0.9 + 0.1 * 7, 1e-12);  // 14 / (3 - 1)
  EXPECT_EQ(*norm.batches->value.as<int64_t>(), 1);
  norm.forward(ctx, x.view(), false, y.view(), nullptr);
  EXPECT_NEAR(values_of(y.view())[0], 0.7 / std::sqrt(1.6 + 1e-5), 1e-12);
  EXPECT_EQ(*norm.batches->value.as<int64_t>(), 1);
  Tensor one({1, 1}, DType::f64), out({1, 1}, DType::f64);
  expect_error("needs more than 1 row",
               [&] { norm.forward(ctx, one.view(), true, out.view(), nullptr); });
}

// Encodes the cells after `change` and expects a refusal with this code and text.
void expect_refused(const ScgptStyle& style, const std::string& code, const std::string& text,
                    const std::function<void(StyledCells&, EncodeOptions&)>& change) {
  SCOPED_TRACE(text);
  Context ctx(Device::cpu(), {.threads = 1});
  ScgptNetwork net = network_of(style, DType::f32);
  StyledCells cells;
  EncodeOptions options{.flags = cells.flags, .batches = cells.batches, .domain = 1};
  change(cells, options);
  TokenBatch batch;
  batch.assign(ctx, cells.views());
  Tensor out({batch.tokens(), net.dim()}, DType::f32);
  Arena::Scope scope(ctx.activations());
  try {
    net.encode(ctx, batch, options, out.view());
    ADD_FAILURE() << "nothing was refused";
  } catch (const DataError& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), ::testing::HasSubstr(text));
  }
}

TEST(ScgptStyle, RefusesWhatTheModelDoesNotHave) {
  const std::vector<ScgptStyle> styles = scgpt_styles();
  const ScgptStyle &category = styles[0], &perturbation = styles[3], &integration = styles[4];
  expect_refused(category, "E-VALUE-CATEGORY", "the value 6 is no category",
                 [](StyledCells& c, EncodeOptions&) { c.values[1][1] = 6; });
  expect_refused(category, "E-VALUE-CATEGORY", "0 to 5",
                 [](StyledCells& c, EncodeOptions&) { c.values[1][1] = -2; });
  expect_refused(category, "E-VALUE-CATEGORY", "nan is no category",
                 [](StyledCells& c, EncodeOptions&) { c.values[1][1] = NAN; });
  expect_refused(perturbation, "E-TOKEN-FLAG", "got 0 of 11",
                 [](StyledCells&, EncodeOptions& o) { o.flags = {}; });
  expect_refused(perturbation, "E-TOKEN-FLAG", "the perturbation flag 3 is outside 0 to 2",
                 [](StyledCells& c, EncodeOptions&) { c.flags[4] = 3; });
  expect_refused(integration, "E-BATCH-LABEL", "got 0 of 3",
                 [](StyledCells&, EncodeOptions& o) { o.batches = {}; });
  expect_refused(integration, "E-BATCH-LABEL", "the batch label 3 is outside 0 to 2",
                 [](StyledCells& c, EncodeOptions&) { c.batches[1] = 3; });
  expect_refused(integration, "E-BATCH-LABEL", "the batch label 2 has no batch norm",
                 [](StyledCells&, EncodeOptions& o) { o.domain = 2; });
}

TEST_P(ScgptStyles, AFolderBringsEverythingBack) {
  Context ctx(Device::cpu(), {.threads = 1});
  const ScgptStyle& style = GetParam();
  TemporaryFolder folder;
  const std::string path = folder / style.name;
  make_directory(path);
  ScgptModel model;
  for (int i = 0; i < 6; ++i) model.vocabulary.append(cat("GENE", i));
  model.vocabulary.append_specials();
  model.config = style.config;
  model.network = std::make_unique<ScgptNetwork>(style.config, style.heads, scgpt_initialiser(7));
  train_batch_norms(*model.network);
  styled_loss(ctx, *model.network, style, DType::f32, false);  // batch norms count
  save_scgpt(path, model);
  expect_error("another style than the published ones", [&] { load_scgpt(path); });
  ScgptModel again = load_scgpt(path, {.all_styles = true});
  EXPECT_EQ(again.config.value_style, style.config.value_style);
  EXPECT_EQ(again.config.mvc_style, style.config.mvc_style);
  EXPECT_EQ(again.config.flag_pad, style.config.flag_pad);
  EXPECT_EQ(styled_loss(ctx, *again.network, style, DType::f32, false),
            styled_loss(ctx, *model.network, style, DType::f32, false));
  const auto want = model.network->buffers().all(), got = again.network->buffers().all();
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i]->name, want[i]->name);
    expect_same_bits(got[i]->value.view(), want[i]->value.view());
  }
}

TEST(ScgptStyle, ArgsSayItOrTheUsualIsTaken) {
  using nlohmann::json;
  const auto config_of = [](const json& args) { return ScgptConfig::from_args(args, "args.json"); };
  EXPECT_EQ(config_of({{"input_emb_style", "category"}}).cell_style, Pooling::mean);
  EXPECT_EQ(config_of({{"input_emb_style", "scaling"}}).cell_style, Pooling::weighted);
  EXPECT_EQ(config_of(json::object()).cell_style, Pooling::cls);
  EXPECT_EQ(config_of({{"input_emb_style", "category"}, {"cell_emb_style", "cls"}}).cell_style,
            Pooling::cls);
  expect_error("\"input_emb_style\" is \"fourier\"; this version knows continuous, category", [&] {
    config_of({{"input_emb_style", "fourier"}});
  });
  expect_error("\"cell_emb_style\" is \"max\"; this version knows cls, avg-pool, w-pool", [&] {
    config_of({{"cell_emb_style", "max"}});
  });
  expect_error("\"mvc_decoder_style\" is 3", [&] { config_of({{"mvc_decoder_style", 3}}); });
}

// The original's layers without flash attention do not know it.
TEST(ScgptStyle, PreNormIsOfFastLayers) {
  using nlohmann::json;
  const auto config_of = [](const json& args) { return ScgptConfig::from_args(args, "args.json"); };
  EXPECT_FALSE(config_of(json::object()).pre_norm);
  EXPECT_TRUE(config_of({{"pre_norm", true}}).pre_norm);
  EXPECT_TRUE(config_of({{"pre_norm", true}, {"fast_transformer", true}}).pre_norm);
  EXPECT_FALSE(config_of({{"pre_norm", true}, {"fast_transformer", false}}).pre_norm);
  EXPECT_FALSE(config_of({{"pre_norm", false}, {"fast_transformer", true}}).pre_norm);
  EXPECT_TRUE(config_of(config_of({{"pre_norm", true}}).to_args()).pre_norm);
  EXPECT_TRUE(config_of({{"pre_norm", true}}).plain());
  expect_error("\"pre_norm\" must be true or false", [&] { config_of({{"pre_norm", "yes"}}); });
}

}  // namespace
}  // namespace scgraft
