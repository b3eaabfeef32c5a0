// SPDX-License-Identifier: Apache-2.0
// The scFoundation network as a whole: gradients against finite differences, and what must not
// change a result.
#include <algorithm>
#include <cmath>

#include "model/scfoundation/cell_pooler.h"
#include "model/scfoundation/network.h"
#include "tests/kernels/packed_cells.h"
#include "tests/model/tiny_scfoundation.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

Tensor weights_like(const Tensor& t) {
  Tensor w(t.shape(), t.dtype());
  RandomStream random(3, RandomUse::simulate, 77);
  visit_real(t.dtype(), [&]<class T>(Type<T>) {
    for (int64_t i = 0; i < t.numel(); ++i) w.as<T>()[i] = static_cast<T>(random.normal());
  });
  return w;
}

// A network and what is computed with it, in one type.
class ScfoundationNetworkTest : public ::testing::Test {
 protected:
  ScfoundationNetwork make(DType dtype) {
    return {tiny_scfoundation_config(), kTinyFeatures, random_scfoundation(5, dtype)};
  }
  static std::vector<Parameter*> trained(ScfoundationNetwork& net) {
    std::vector<Parameter*> all = net.parameters().all();
    std::erase_if(all, [](const Parameter* p) { return p->name.ends_with("projection_matrix"); });
    return all;
  }
  Tensor encoded(ScfoundationNetwork& net, const std::vector<CellView>& cells, DType dtype,
                 EncodeOptions options = {}) {
    TokenBatch batch;
    batch.assign(cells);
    Arena::Scope scope(ctx_.activations());
    const int64_t rows = options.rows == LayerRows::cls ? batch.cells() : batch.tokens();
    Tensor out({rows, net.dim()}, dtype);
    net.encode(ctx_, batch, options, out.view());
    return out;
  }
  Tensor decoded(ScfoundationNetwork& net, DType dtype, EncodeOptions options = {}) {
    TokenBatch batch, whole;
    batch.assign(cells_.views);
    whole.assign(cells_.whole);
    Arena::Scope scope(ctx_.activations());
    Tensor x({batch.tokens(), net.dim()}, dtype), out({whole.tokens(), 1}, dtype);
    net.encode(ctx_, batch, options, x.view());
    net.decode(ctx_, batch, x.view(), whole, options, out.view());
    return out;
  }
  // Adds the gradients of dot(decoded, w), or of dot(encoded, w), to what is trainable.
  void learn(ScfoundationNetwork& net, bool decode, DType dtype, EncodeOptions options = {}) {
    options.save = true;
    TokenBatch batch, whole;
    batch.assign(cells_.views);
    whole.assign(cells_.whole);
    Arena::Scope scope(ctx_.activations());
    const int64_t rows = options.rows == LayerRows::cls ? batch.cells() : batch.tokens();
    Tensor x({rows, net.dim()}, dtype), dx(x.shape(), dtype);
    net.encode(ctx_, batch, options, x.view());
    if (decode) {
      Tensor out({whole.tokens(), 1}, dtype);
      net.decode(ctx_, batch, x.view(), whole, options, out.view());
      const Tensor dout = weights_like(out);
      net.decode_backward(ctx_, batch, whole, options, dout.view(), dx.view());
    } else {
      dx = weights_like(x);
    }
    net.encode_backward(ctx_, batch, options, dx.view());
  }

  Context ctx_{Device::cpu(), {.threads = 1}};
  TinyScfoundationCells cells_;
};

TEST_F(ScfoundationNetworkTest, EncoderGradientsMatchFiniteDifferences) {
  for (const LayerRows rows : {LayerRows::all, LayerRows::cls})
    for (const bool training : {false, true}) {
      ScfoundationNetwork net = make(DType::f64);
      ctx_.random() = {9, 4};
      const EncodeOptions options{.training = training, .rows = rows};
      const auto parameters = net.encoder_parameters();
      make_trainable(parameters);
      learn(net, false, DType::f64, options);
      const Tensor w = weights_like(encoded(net, cells_.views, DType::f64, options));
      for (Parameter* p : parameters) {
        SCOPED_TRACE(cat(p->name, training ? " with dropout" : ""));
        expect_gradient(
            p->value,
            [&] {
              net.parameters_updated();
              return dot(encoded(net, cells_.views, DType::f64, options).view(), w.view());
            },
            p->grad.view());
      }
    }
}

TEST_F(ScfoundationNetworkTest, GradientsThroughTheDecoderMatchFiniteDifferences) {
  for (const FavorStabiliser stabiliser : {FavorStabiliser::cell, FavorStabiliser::batch}) {
    ScfoundationNetwork net = make(DType::f64);
    net.set_stabiliser(stabiliser);
    const auto parameters = trained(net);
    make_trainable(parameters);
    learn(net, true, DType::f64);
    const Tensor w = weights_like(decoded(net, DType::f64));
    for (Parameter* p : parameters) {
      SCOPED_TRACE(p->name);
      expect_gradient(
          p->value,
          [&] {
            net.parameters_updated();
            return dot(decoded(net, DType::f64).view(), w.view());
          },
          p->grad.view());
    }
  }
}

// What lies below the lowest trained weight is not computed, and the rest does not notice.
TEST_F(ScfoundationNetworkTest, GradientsDoNotDependOnWhatIsFrozen) {
  ScfoundationNetwork whole = make(DType::f32);
  make_trainable(trained(whole));
  learn(whole, true, DType::f32);
  for (const char* part : {"to_final", "norm.", "decoder.norm", "decoder.performer.net.layers.1",
                           "decoder.performer.net.layers.0", "decoder_embed", "encoder.norm",
                           "encoder.transformer_encoder.1", "token_emb.mlp.", "token_emb.mlp2",
                           "token_emb.emb.", "token_emb.emb_mask", "pos_emb"}) {
    SCOPED_TRACE(part);
    ScfoundationNetwork net = make(DType::f32);
    std::vector<Parameter*> some = trained(net);
    std::erase_if(some, [&](const Parameter* p) { return !p->name.starts_with(part); });
    ASSERT_FALSE(some.empty());
    make_trainable(some);
    learn(net, true, DType::f32);
    // A norm whose scale is frozen takes its rows back from its result: not the same bits.
    for (const Parameter* p : some) {
      SCOPED_TRACE(p->name);
      const auto got = values_of(p->grad.view());
      const auto want = values_of(whole.parameters().find(p->name)->grad.view());
      double largest = 0;
      for (const double v : want) largest = std::max(largest, std::abs(v));
      EXPECT_GT(largest, 0);
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i], kGoldenGradient * largest + 1e-6) << "element " << i;
    }
  }
}

TEST_F(ScfoundationNetworkTest, ParametersAccumulate) {
  ScfoundationNetwork net = make(DType::f64);
  const auto parameters = trained(net);
  make_trainable(parameters);
  learn(net, true, DType::f64);
  std::vector<Tensor> once;
  for (const Parameter* p : parameters) once.push_back(p->grad.clone());
  learn(net, true, DType::f64);
  for (size_t i = 0; i < parameters.size(); ++i) {
    std::vector<double> twice = values_of(once[i].view());
    for (double& v : twice) v *= 2;
    expect_close(parameters[i]->grad.view(), twice);
  }
}

TEST_F(ScfoundationNetworkTest, ACellIsTheSameAloneAndAmongOthers) {
  ScfoundationNetwork net = make(DType::f32);
  const Tensor together = encoded(net, cells_.views, DType::f32);
  int64_t row = 0;
  for (const CellView& cell : cells_.views) {
    const Tensor alone = encoded(net, {cell}, DType::f32);
    expect_same_bits(alone.view(), together.view().rows(row, row + alone.dim(0)));
    row += alone.dim(0);
  }
}

// Padding that is in the batch has rows of its own, which nobody sees.
TEST_F(ScfoundationNetworkTest, PaddingChangesNoOtherRow) {
  ScfoundationNetwork net = make(DType::f32);
  const Tensor without = encoded(net, {cells_.views[0]}, DType::f32);
  const int64_t n = without.dim(0);
  std::vector<int32_t> entries = cells_.expressed[0];
  std::vector<float> values = cells_.values[0];
  for (int i = 0; i < 2; ++i) {
    entries.push_back(12);
    values.push_back(103.0f);
  }
  std::vector<uint8_t> visible(entries.size(), 1);
  visible[entries.size() - 1] = visible[entries.size() - 2] = 0;
  const CellView padded{.cell = 40, .genes = entries, .values = values};
  const Tensor with = encoded(net, {padded}, DType::f32, {.visible = visible});
  expect_close(with.view().rows(0, n), without.view(), 64);
  expect_same_bits(with.view().rows(n, n + 1), with.view().rows(n + 1, n + 2));
  const Tensor seen = encoded(net, {padded}, DType::f32);
  EXPECT_NE(values_of(seen.view().rows(0, n)), values_of(with.view().rows(0, n)));
}

// An expressed entry is what the encoder made of it; padding is no entry.
TEST_F(ScfoundationNetworkTest, TheDecoderTakesRowsOfTheEncoder) {
  ScfoundationNetwork net = make(DType::f32);
  for (size_t c = 0; c < cells_.all.size(); ++c) {  // padding among the entries too
    cells_.all[c].push_back(12);
    cells_.all_values[c].push_back(103.0f);
    cells_.whole[c].genes = cells_.all[c];
    cells_.whole[c].values = cells_.all_values[c];
  }
  const Tensor want = decoded(net, DType::f32);
  for (size_t c = 0; c < cells_.all_values.size(); ++c) {
    for (const int32_t entry : cells_.expressed[c])
      cells_.all_values[c][static_cast<size_t>(entry)] = 0.25f;
    // Another order of the tokens, and padding that all see: their rows are given below.
    std::reverse(cells_.expressed[c].begin(), cells_.expressed[c].end());
  }
  TokenBatch tokens, batch, whole;
  tokens.assign(TinyScfoundationCells().views);
  std::vector<CellView> views = cells_.views;
  for (size_t c = 0; c < views.size(); ++c) {
    cells_.expressed[c].push_back(12);
    cells_.values[c].push_back(103.0f);
    views[c].genes = cells_.expressed[c];
    views[c].values = cells_.values[c];
  }
  batch.assign(views);
  whole.assign(cells_.whole);
  Arena::Scope scope(ctx_.activations());
  Tensor x({tokens.tokens(), net.dim()}, DType::f32),
      turned({batch.tokens(), net.dim()}, DType::f32);
  net.encode(ctx_, tokens, {}, x.view());
  const Packing from = tokens.packing(), to = batch.packing();
  for (int64_t c = 0; c < from.cells(); ++c) {
    for (int64_t i = 0; i < from.length(c); ++i) {
      const int64_t row = to.end(c) - 2 - i;
      copy(std::as_const(x).view().rows(from.begin(c) + i, from.begin(c) + i + 1),
           turned.view().rows(row, row + 1));
    }
    copy(std::as_const(x).view().rows(0, 1), turned.view().rows(to.end(c) - 1, to.end(c)));
  }
  Tensor got({whole.tokens(), 1}, DType::f32);
  net.decode(ctx_, batch, turned.view(), whole, {}, got.view());
  expect_same_bits(got.view(), want.view());
  cells_.all_values[0][6] = 0.25f;  // an entry that the encoder did not see
  whole.assign(cells_.whole);
  net.decode(ctx_, batch, turned.view(), whole, {}, got.view());
  EXPECT_NE(values_of(got.view()), values_of(want.view()));
}

TEST_F(ScfoundationNetworkTest, EntriesThatTheModelHasNotAreRefused) {
  ScfoundationNetwork net = make(DType::f32);
  const std::vector<int32_t> entries = {1, 13};
  const std::vector<float> values = {1, 1};
  expect_error("a cell has an entry 13, this model has 12", [&] {
    encoded(net, {{.cell = 0, .genes = entries, .values = values}}, DType::f32);
  });
}

// [S ; T ; largest ; mean] of a cell of two genes and one of a single gene.
TEST(CellPooler, HandComputed) {
  Context ctx;
  const Tensor x =
      tensor_of({7, 2}, DType::f32, {1, 8, 3, 2, 10, 20, 30, 40, 5, 6, -1, -2, -3, -4});
  const std::vector<int32_t> offsets = {0, 4, 7};
  const Packing packing = Packing::over(offsets);
  Tensor all({2, 8}, DType::f32), largest({2, 2}, DType::f32);
  CellPooler of_all(CellPooling::all), of_max(CellPooling::max);
  of_all.forward(ctx, x.view(), packing, all.view());
  expect_close(all.view(), {30, 40, 10, 20, 3, 8, 2, 5, -3, -4, -1, -2, 5, 6, 5, 6});
  of_max.forward(ctx, x.view(), packing, largest.view());
  expect_close(largest.view(), {30, 40, 5, 6});
  const std::vector<int32_t> short_cell = {0, 2};
  expect_error("a cell has no expressed gene", [&] {
    of_all.forward(ctx, x.view().rows(0, 2), Packing::over(short_cell), all.view().rows(0, 1));
  });
}

TEST(CellPooler, GradientMatchesFiniteDifferences) {
  Context ctx(Device::cpu(), {.threads = 1});
  const std::vector<int32_t> offsets = {0, 4, 7, 15};
  const Packing packing = Packing::over(offsets);
  for (const CellPooling pooling : {CellPooling::all, CellPooling::max}) {
    Tensor x = random_values({15, 3}, DType::f64, 4);
    CellPooler embedding(pooling);
    Tensor y({3, embedding.width(3)}, DType::f64), dx({15, 3}, DType::f64);
    const Tensor dy = random_values(y.shape(), DType::f64, 5);
    embedding.forward(ctx, x.view(), packing, y.view());
    embedding.backward(ctx, dy.view(), packing, dx.view());
    expect_gradient(
        x,
        [&] {
          CellPooler again(pooling);
          again.forward(ctx, x.view(), packing, y.view());
          return dot(y.view(), dy.view());
        },
        dx.view());
  }
}

}  // namespace
}  // namespace scgraft
