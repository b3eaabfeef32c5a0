// SPDX-License-Identifier: Apache-2.0
// One encoder layer, post-norm and pre-norm, on every device of this build: what the original's
// fast layer recorded, and gradients against those of the CPU in f64.
#include "io/checkpoint.h"
#include "io/npz.h"
#include "kernels/cast.h"
#include "model/batch.h"
#include "model/encoder_layer.h"
#include "model/parameter_source.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

const std::string kCase = "golden/scgpt_flash_layer_prenorm";
constexpr int64_t kDim = 32, kFfn = 64, kHeads = 4;

struct Mode {
  const char* name;
  bool cuda = false;
  DType type = DType::f32;  // of activations and products
  double activation = kGoldenActivation;
  double gradient = kGoldenGradient;  // of the length of a tensor's gradient

  Device device() const { return cuda ? Device::cuda() : Device::cpu(); }
};
// The 16-bit types as in tests/training/golden_test.cc.
constexpr Mode kModes[] = {
    {.name = "cpu"},
    {.name = "cpu_f64", .type = DType::f64},
    {.name = "cuda", .cuda = true},
    {.name = "cuda_bf16", .cuda = true, .type = DType::bf16, .activation = 3e-2, .gradient = 5e-2},
    {.name = "cuda_f16", .cuda = true, .type = DType::f16, .activation = 4e-3, .gradient = 5e-3},
};

// The layer of the file, and the tokens of its cells that are not padding.
class GoldenLayer {
 public:
  GoldenLayer(const Mode& mode, bool pre_norm)
      : mode_(mode),
        weights_(open_checkpoint(shared_path(kCase + "/layer.pt"))),
        arrays_(read_npz(shared_path(kCase + "/arrays.npz"))),
        ctx_(mode.device()) {
    const DType stored = mode.type == DType::f64 ? DType::f64 : DType::f32;
    const ParameterSource source = [&](const std::string& name, const Shape& shape) {
      const Tensor& t = weights_.tensor(name);
      require(t.shape() == shape, name, " is ", t.shape());
      return tensor_of(shape, stored, values_of(t.view()));
    };
    const ParameterMaker make(parameters_, source);
    Parameter& weight = make.parameter("self_attn.Wqkv.weight", {3 * kDim, kDim});
    Parameter& bias = make.parameter("self_attn.Wqkv.bias", {3 * kDim});
    layer_.pre_norm = pre_norm;
    layer_.heads = kHeads;
    layer_.q = Linear(&weight, &bias, 0, kDim);
    layer_.k = Linear(&weight, &bias, kDim, 2 * kDim);
    layer_.v = Linear(&weight, &bias, 2 * kDim, 3 * kDim);
    layer_.out = make.linear("self_attn.out_proj", kDim, kDim);
    layer_.ffn_in = make.linear("linear1", kDim, kFfn);
    layer_.ffn_out = make.linear("linear2", kFfn, kDim);
    layer_.norm1 = make.norm("norm1", kDim);
    layer_.norm2 = make.norm("norm2", kDim);
    if (mode.type != stored)
      for (Linear* linear :
           {&layer_.q, &layer_.k, &layer_.v, &layer_.out, &layer_.ffn_in, &layer_.ffn_out})
        linear->set_precision(mode.type);
    move_to(parameters_.all(), mode.device());

    const std::vector<double> padding = values_of(arrays_.at("src_key_padding_mask").view());
    const auto seq = static_cast<size_t>(arrays_.at("x").dim(1));
    std::vector<std::vector<int32_t>> genes(padding.size() / seq);
    for (size_t i = 0; i < padding.size(); ++i)
      if (padding[i] == 0) genes[i / seq].push_back(static_cast<int32_t>(i % seq));
    std::vector<std::vector<float>> values;
    for (const auto& ids : genes) values.emplace_back(ids.size(), 1.0f);
    std::vector<CellView> cells;
    for (size_t c = 0; c < genes.size(); ++c)
      cells.push_back({.cell = static_cast<int64_t>(c), .genes = genes[c], .values = values[c]});
    batch_.assign(ctx_, cells);
  }

  std::vector<double> recorded(const std::string& name) const {
    const std::vector<double> padding = values_of(arrays_.at("src_key_padding_mask").view());
    const std::vector<double> all = values_of(arrays_.at(name).view());
    std::vector<double> valid;
    for (size_t i = 0; i < all.size(); ++i)
      if (padding[i / kDim] == 0) valid.push_back(all[i]);
    return valid;
  }

  // Rows of every token, or of the first of every cell. With `learn` gradients of
  // sum(w * output) are in the parameters, and in dx.
  std::vector<double> run(LayerRows which, bool learn) {
    Arena::Scope scope(ctx_.activations());
    const Packing packing = batch_.packing();
    const Packing rows = which == LayerRows::cls ? batch_.cell_rows() : packing;
    const TensorView x = there(recorded("x"), packing.tokens());
    const TensorView y = scope.take({rows.tokens(), kDim}, mode_.type);
    EncoderLayer::Saved saved;
    layer_.forward(ctx_, x, packing, which, rows, false, y, learn ? &saved : nullptr);
    const std::vector<double> out = values_of(on_host(y).view());
    if (!learn) return out;
    std::vector<double> w(out.size());
    for (size_t i = 0; i < w.size(); ++i) w[i] = std::cos(static_cast<double>(i));
    const TensorView dy = there(w, rows.tokens());
    const TensorView dx = scope.take(x.shape(), mode_.type);
    layer_.backward(ctx_, saved, packing, which, rows, false, dy, dx);
    dx_ = values_of(on_host(dx).view());
    return out;
  }

  std::vector<Parameter*> parameters() { return parameters_.all(); }
  const std::vector<double>& dx() const { return dx_; }

 private:
  TensorView there(const std::vector<double>& values, int64_t rows) {
    const Tensor here = [&] {
      Tensor t({rows, kDim}, mode_.type == DType::f64 ? DType::f64 : DType::f32);
      visit_real(t.dtype(), [&]<class T>(Type<T>) {
        for (size_t i = 0; i < values.size(); ++i) t.as<T>()[i] = static_cast<T>(values[i]);
      });
      return t.to(mode_.device());
    }();
    const TensorView to = ctx_.activations().take(here.shape(), mode_.type);
    if (here.dtype() == mode_.type)
      copy(ctx_, here.view(), to);
    else
      cast(ctx_, here.view(), to);
    ctx_.synchronize();
    return to;
  }

  Mode mode_;
  Checkpoint weights_;
  std::map<std::string, Tensor> arrays_;
  Context ctx_;
  ParameterSet parameters_;
  EncoderLayer layer_;
  TokenBatch batch_;
  std::vector<double> dx_;
};

double largest_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double v : values) largest = std::max(largest, std::abs(v));
  return largest;
}
double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::isfinite(a[i]) ? std::max(largest, std::abs(a[i] - b[i])) : INFINITY;
  return largest;
}
double length_of_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double square = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) square += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(square);
}
double length_of(const std::vector<double>& a) {
  return length_of_difference(a, std::vector<double>(a.size(), 0.0));
}

class LayerGolden : public ::testing::TestWithParam<std::tuple<Mode, bool>> {
 protected:
  void SetUp() override {
    if (mode().cuda && cuda_device_count() == 0)
      GTEST_SKIP() << "this machine or build has no CUDA device";
    SCGRAFT_NEEDS_SHARED(kCase);
  }
  Mode mode() const { return std::get<0>(GetParam()); }
  bool pre_norm() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Modes, LayerGolden,
                         ::testing::Combine(::testing::ValuesIn(kModes), ::testing::Bool()),
                         [](const auto& p) {
                           return cat(std::get<0>(p.param).name,
                                      std::get<1>(p.param) ? "_pre" : "_post");
                         });

TEST_P(LayerGolden, OutputsOfTheOriginal) {
  GoldenLayer layer(mode(), pre_norm());
  const std::vector<double> want = layer.recorded(pre_norm() ? "pre_out" : "post_out");
  const std::vector<double> other = layer.recorded(pre_norm() ? "post_out" : "pre_out");
  const double limit = mode().activation * std::max(1.0, largest_of(want));
  for (const bool learn : {false, true})
    EXPECT_LE(largest_difference(layer.run(LayerRows::all, learn), want), limit) << learn;
  EXPECT_GT(largest_difference(other, want), 4 * limit);
  // The first token of every cell, by itself.
  const std::vector<double> cls = layer.run(LayerRows::cls, false);
  std::vector<double> first;
  size_t begin = 0;
  for (const size_t length : {20, 17, 11, 6}) {
    first.insert(first.end(), want.begin() + static_cast<ptrdiff_t>(begin * kDim),
                 want.begin() + static_cast<ptrdiff_t>((begin + 1) * kDim));
    begin += length;
  }
  EXPECT_LE(largest_difference(cls, first), limit);
}

TEST_P(LayerGolden, GradientsOfTheCpu) {
  for (const LayerRows which : {LayerRows::all, LayerRows::cls}) {
    GoldenLayer exact({.name = "f64", .type = DType::f64}, pre_norm());
    GoldenLayer layer(mode(), pre_norm());
    for (GoldenLayer* each : {&exact, &layer}) {
      make_trainable(each->parameters());
      each->run(which, true);
    }
    ASSERT_GT(length_of(exact.dx()), 0.1);
    EXPECT_LE(length_of_difference(layer.dx(), exact.dx()),
              mode().gradient * length_of(exact.dx()));
    // Rounding of rows whose sum is near 0 is not small beside it: 16-bit types are compared by all
    // parameters together.
    double square = 0, apart = 0;
    for (size_t i = 0; i < layer.parameters().size(); ++i) {
      const Parameter& p = *layer.parameters()[i];
      const std::vector<double> want = values_of(exact.parameters()[i]->grad.view());
      const double one = length_of_difference(values_of(on_host(p.grad.view()).view()), want);
      EXPECT_GT(length_of(want), 1e-3) << p.name;
      if (size_of(mode().type) == 2) {
        square += length_of(want) * length_of(want);
        apart += one * one;
      } else {
        EXPECT_LE(one, mode().gradient * length_of(want)) << p.name;
      }
    }
    EXPECT_LE(std::sqrt(apart), mode().gradient * std::sqrt(square));
  }
}

}  // namespace
}  // namespace scgraft
