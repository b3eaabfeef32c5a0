// SPDX-License-Identifier: Apache-2.0
// The scGPT network as a whole: gradients against finite differences, and what must not change a
// result (batch mates, packing, threads, the CLS-only last layer, what else is trained).
#include "model/scgpt/network.h"

#include <cstring>
#include <numeric>

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

constexpr ScgptConfig kTiny{.vocab = 19, .dim = 8, .heads = 2, .layers = 2, .ffn = 12};

struct Cells {
  std::vector<std::vector<int32_t>> genes;
  std::vector<std::vector<float>> values;
  std::vector<CellView> views;
};

// Cells of these lengths, <cls> (id 0) first; genes differ inside a cell.
Cells make_cells(const std::vector<int64_t>& lengths, int64_t vocab) {
  Cells cells;
  for (size_t c = 0; c < lengths.size(); ++c) {
    RandomStream random(5, RandomUse::simulate, static_cast<uint32_t>(c));
    std::vector<int32_t> ids(static_cast<size_t>(vocab) - 1);
    std::iota(ids.begin(), ids.end(), 1);
    for (size_t i = ids.size() - 1; i > 0; --i) std::swap(ids[i], ids[random.below(i + 1)]);
    auto& genes = cells.genes.emplace_back(1, 0);
    auto& values = cells.values.emplace_back(1, 0.0f);
    for (int64_t t = 1; t < lengths[c]; ++t) {
      genes.push_back(ids[static_cast<size_t>(t - 1)]);
      values.push_back(static_cast<float>(1 + random.below(12)));
    }
  }
  for (size_t c = 0; c < lengths.size(); ++c)
    cells.views.push_back({.cell = static_cast<int64_t>(100 + c),
                           .genes = cells.genes[c],
                           .values = cells.values[c]});
  return cells;
}

ScgptConfig without_dropout(ScgptConfig config) {
  config.dropout = 0;
  return config;
}

ScgptNetwork make_network(const ScgptConfig& config, DType dtype, int64_t classes = 3) {
  return ScgptNetwork(config, {.classes = classes}, scgpt_initialiser(11, dtype));
}

Tensor encoded(Context& ctx, ScgptNetwork& net, const std::vector<CellView>& cells,
               EncodeOptions options, DType dtype = DType::f32) {
  TokenBatch batch;
  batch.assign(cells);
  Arena::Scope scope(ctx.activations());
  const int64_t rows = options.rows == LayerRows::cls ? batch.cells() : batch.tokens();
  Tensor out({rows, net.dim()}, dtype);
  net.encode(ctx, batch, options, out.view());
  return out;
}

Tensor weights_like(const Tensor& t) {
  Tensor w(t.shape(), t.dtype());
  RandomStream random(3, RandomUse::simulate, 77);
  visit_real(t.dtype(), [&]<class T>(Type<T>) {
    for (int64_t i = 0; i < t.numel(); ++i) w.as<T>()[i] = static_cast<T>(random.normal());
  });
  return w;
}

// Gradients of sum(w * encode(cells)) for everything that is trainable.
void accumulate_gradients(Context& ctx, ScgptNetwork& net, const std::vector<CellView>& cells,
                          LayerRows rows, DType dtype, bool training = false) {
  TokenBatch batch;
  batch.assign(cells);
  Arena::Scope scope(ctx.activations());
  const EncodeOptions options{.training = training, .save = true, .rows = rows};
  Tensor out({rows == LayerRows::cls ? batch.cells() : batch.tokens(), net.dim()}, dtype);
  net.encode(ctx, batch, options, out.view());
  Tensor dout = weights_like(out);
  net.encode_backward(ctx, batch, options, dout.view());
}

// Which rows the last layer makes, and whether the layers are pre-norm.
class EncoderGradient : public ::testing::TestWithParam<std::tuple<LayerRows, bool>> {
 protected:
  LayerRows rows() const { return std::get<0>(GetParam()); }
  ScgptConfig config() const {
    ScgptConfig config = kTiny;
    config.pre_norm = std::get<1>(GetParam());
    return config;
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, EncoderGradient,
                         ::testing::Combine(::testing::Values(LayerRows::all, LayerRows::cls),
                                            ::testing::Bool()),
                         [](const auto& p) {
                           return cat(std::get<0>(p.param) == LayerRows::all ? "all" : "cls",
                                      std::get<1>(p.param) ? "_pre_norm" : "");
                         });

TEST_P(EncoderGradient, EveryParameterMatchesFiniteDifferences) {
  Context ctx(Device::cpu(), {.threads = 1});
  ScgptNetwork net = make_network(without_dropout(config()), DType::f64);
  const Cells cells = make_cells({4, 1, 6}, kTiny.vocab);
  const auto parameters = net.encoder_parameters();
  make_trainable(parameters);
  accumulate_gradients(ctx, net, cells.views, rows(), DType::f64);
  const Tensor w = weights_like(encoded(ctx, net, cells.views, {.rows = rows()}, DType::f64));
  for (Parameter* p : parameters) {
    SCOPED_TRACE(p->name);
    expect_gradient(
        p->value,
        [&] {
          net.parameters_updated();
          return dot(encoded(ctx, net, cells.views, {.rows = rows()}, DType::f64).view(), w.view());
        },
        p->grad.view());
  }
}

// Dropout is a fixed function of coordinates, so that it can be differentiated through.
TEST_P(EncoderGradient, WithDropoutMatchesFiniteDifferences) {
  Context ctx(Device::cpu(), {.threads = 1});
  ctx.random() = {9, 4};
  ScgptConfig dropping = config();
  dropping.dropout = 0.3;
  ScgptNetwork net = make_network(dropping, DType::f64);
  const Cells cells = make_cells({5, 3}, kTiny.vocab);
  const EncodeOptions options{.training = true, .rows = rows()};
  const auto parameters = net.encoder_parameters();
  make_trainable(parameters);
  accumulate_gradients(ctx, net, cells.views, rows(), DType::f64, true);
  const Tensor w = weights_like(encoded(ctx, net, cells.views, options, DType::f64));
  for (Parameter* p : parameters) {
    SCOPED_TRACE(p->name);
    expect_gradient(
        p->value,
        [&] {
          net.parameters_updated();
          return dot(encoded(ctx, net, cells.views, options, DType::f64).view(), w.view());
        },
        p->grad.view());
  }
}

// What is trained alone has the gradient that it has among others, whatever else is not computed.
TEST_P(EncoderGradient, OfOnePartIsThatOfAll) {
  Context ctx;
  const Cells cells = make_cells({5, 3}, kTiny.vocab);
  ScgptNetwork whole = make_network(config(), DType::f32);
  make_trainable(whole.encoder_parameters());
  accumulate_gradients(ctx, whole, cells.views, rows(), DType::f32);
  ScgptNetwork part = make_network(config(), DType::f32);
  for (Parameter* p : part.encoder_parameters()) {
    if (p->name.find("layers.1.") == std::string::npos) continue;
    SCOPED_TRACE(p->name);
    make_trainable({p});
    accumulate_gradients(ctx, part, cells.views, rows(), DType::f32);
    expect_same_bits(p->grad.view(), whole.parameters().find(p->name)->grad.view());
    freeze({p});
  }
}

TEST(Encoder, BatchMatesOrderAndThreadsChangeNoBit) {
  Context two(Device::cpu(), {.threads = 2}), one(Device::cpu(), {.threads = 1});
  ScgptConfig config = kTiny;
  config.vocab = 200;
  config.dim = 64;
  config.ffn = 96;
  ScgptNetwork net = make_network(config, DType::f32);
  const Cells cells = make_cells({70, 1, 3, 130, 33, 64, 65}, config.vocab);
  for (LayerRows rows : {LayerRows::all, LayerRows::cls}) {
    const Tensor together = encoded(two, net, cells.views, {.rows = rows});
    int64_t row = 0;
    for (const CellView& cell : cells.views) {
      const Tensor alone = encoded(one, net, {cell}, {.rows = rows});
      expect_same_bits(alone.view(), together.view().rows(row, row + alone.dim(0)));
      row += alone.dim(0);
    }
    const std::vector<CellView> reversed(cells.views.rbegin(), cells.views.rend());
    const Tensor backwards = encoded(two, net, reversed, {.rows = rows});
    const int64_t last = rows == LayerRows::cls ? 1 : 65;
    expect_same_bits(backwards.view().rows(0, last),
                     together.view().rows(together.dim(0) - last, together.dim(0)));
  }
}

TEST(Encoder, TheClsTailGivesTheRowsOfTheWholeLayer) {
  Context ctx;
  ScgptConfig config = kTiny;
  config.vocab = 200;
  config.dim = 64;
  ScgptNetwork net = make_network(config, DType::f32);
  const Cells cells = make_cells({70, 1, 130}, config.vocab);
  const Tensor all = encoded(ctx, net, cells.views, {.rows = LayerRows::all});
  const Tensor cls = encoded(ctx, net, cells.views, {.rows = LayerRows::cls});
  int64_t row = 0;
  for (int64_t c = 0; c < cls.dim(0); ++c) {
    expect_close(cls.view().rows(c, c + 1), all.view().rows(row, row + 1), config.dim);
    row += static_cast<int64_t>(cells.views[static_cast<size_t>(c)].genes.size());
  }
}

TEST(Encoder, OrderOfGenesChangesOnlyTheOrderOfRows) {
  Context ctx;
  ScgptNetwork net = make_network(kTiny, DType::f64);
  Cells cells = make_cells({9}, kTiny.vocab);
  const Tensor straight = encoded(ctx, net, cells.views, {}, DType::f64);
  std::reverse(cells.genes[0].begin() + 1, cells.genes[0].end());
  std::reverse(cells.values[0].begin() + 1, cells.values[0].end());
  const Tensor turned = encoded(ctx, net, cells.views, {}, DType::f64);
  expect_close(turned.view().rows(0, 1), straight.view().rows(0, 1), kTiny.dim);
  for (int64_t t = 1; t < 9; ++t)
    expect_close(turned.view().rows(t, t + 1), straight.view().rows(9 - t, 10 - t), kTiny.dim);
}

// What lies below the lowest trained layer is not computed, and the rest does not notice.
TEST(Encoder, GradientsAboveTheFrontierDoNotDependOnWhatIsFrozen) {
  Context ctx;
  const Cells cells = make_cells({5, 3}, kTiny.vocab);
  ScgptNetwork whole = make_network(kTiny, DType::f32);
  make_trainable(whole.encoder_parameters());
  accumulate_gradients(ctx, whole, cells.views, LayerRows::cls, DType::f32);

  ScgptNetwork part = make_network(kTiny, DType::f32);
  std::vector<Parameter*> upper;
  for (Parameter* p : part.encoder_parameters())
    if (p->name.find("layers.1.") != std::string::npos) upper.push_back(p);
  ASSERT_FALSE(upper.empty());
  make_trainable(upper);
  accumulate_gradients(ctx, part, cells.views, LayerRows::cls, DType::f32);
  for (Parameter* p : part.encoder_parameters()) {
    SCOPED_TRACE(p->name);
    EXPECT_EQ(p->trainable(), p->name.find("layers.1.") != std::string::npos);
    if (p->trainable())
      expect_same_bits(p->grad.view(), whole.parameters().find(p->name)->grad.view());
  }
}

TEST(Encoder, ParametersAccumulate) {
  Context ctx;
  const Cells cells = make_cells({5, 3}, kTiny.vocab);
  ScgptNetwork net = make_network(kTiny, DType::f64);
  make_trainable(net.encoder_parameters());
  accumulate_gradients(ctx, net, cells.views, LayerRows::all, DType::f64);
  std::vector<std::vector<double>> once;
  for (Parameter* p : net.encoder_parameters()) once.push_back(values_of(p->grad.view()));
  accumulate_gradients(ctx, net, cells.views, LayerRows::all, DType::f64);
  size_t i = 0;
  for (Parameter* p : net.encoder_parameters()) {
    SCOPED_TRACE(p->name);
    std::vector<double> twice = once[i++];
    for (double& v : twice) v *= 2;
    expect_close(p->grad.view(), twice, kTiny.dim);
  }
}

// Working on a batch in pieces gives the same gradient bits: parameters sum cell by cell.
TEST(Encoder, ChunksChangeNoBitOfAGradient) {
  Context ctx;
  const Cells cells = make_cells({70, 1, 3, 130, 33}, 200);
  ScgptConfig config = kTiny;
  config.vocab = 200;
  std::vector<Tensor> together;
  for (bool split : {false, true}) {
    ScgptNetwork net = make_network(config, DType::f32);
    std::vector<Parameter*> layers;
    for (Parameter* p : net.encoder_parameters())
      if (p->name.starts_with("transformer_encoder")) layers.push_back(p);
    make_trainable(layers);
    TokenBatch batch;
    const Tensor w =
        weights_like(Tensor({static_cast<int64_t>(cells.views.size()), 8}, DType::f32));
    for (size_t begin = 0; begin < cells.views.size();) {
      const size_t count = split ? 1 : cells.views.size();
      batch.assign(std::span(cells.views).subspan(begin, count));
      Arena::Scope scope(ctx.activations());
      const EncodeOptions options{.save = true, .rows = LayerRows::cls};
      Tensor out({batch.cells(), net.dim()}, DType::f32);
      net.encode(ctx, batch, options, out.view());
      Tensor dout(out.shape(), DType::f32);
      std::memcpy(
          dout.view().data(),
          w.view().rows(static_cast<int64_t>(begin), static_cast<int64_t>(begin + count)).data(),
          static_cast<size_t>(dout.nbytes()));
      net.encode_backward(ctx, batch, options, dout.view());
      begin += count;
    }
    size_t i = 0;
    for (Parameter* p : layers) {
      SCOPED_TRACE(p->name);
      if (!split)
        together.push_back(p->grad.clone());
      else
        expect_same_bits(p->grad.view(), together[i++].view());
    }
  }
}

TEST(Encoder, UnknownSiteListsTheSites) {
  ScgptNetwork net = make_network(kTiny, DType::f32);
  EXPECT_EQ(net.linear_sites().size(), 12u);
  expect_error("layers.0 ... layers.1 with attn.q", [&] { net.linear_site("layers.9.attn.q"); });
}

}  // namespace
}  // namespace scgraft
