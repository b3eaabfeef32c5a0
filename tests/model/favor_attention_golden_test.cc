// SPDX-License-Identifier: Apache-2.0
// FAVOR+ attention against what the original code recorded: features, outputs, and gradients of the
// weights in front of it. The test stands here because it reads files.
#include <cmath>
#include <functional>
#include <vector>

#include "io/checkpoint.h"
#include "kernels/favor_attention.h"
#include "tests/kernels/packed_cells.h"
#include "tests/model/npz.h"

namespace scgraft {
namespace {

const std::string kArrays = "golden/scbert_pretrain/arrays.npz";
constexpr int64_t kCells = 3, kTokens = 37, kHeads = 4, kHeadDim = 16, kFeatures = 44, kWidth = 20;
constexpr int64_t kInner = kHeads * kHeadDim, kRows = kCells * kTokens;

// Row-major matrices of doubles, for the layers between the loss and the attention.
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> values;

  Matrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  Matrix(int64_t r, int64_t c, std::vector<double> v) : rows(r), columns(c), values(std::move(v)) {
    require(static_cast<int64_t>(values.size()) == r * c, "matrix of ", r, " x ", c, " from ",
            values.size(), " values");
  }
  double& operator()(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  double operator()(int64_t r, int64_t c) const {
    return values[static_cast<size_t>(r * columns + c)];
  }
  Matrix transposed() const {
    Matrix t(columns, rows);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) t(c, r) = (*this)(r, c);
    return t;
  }
};
Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix y(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t k = 0; k < a.columns; ++k)
      for (int64_t j = 0; j < b.columns; ++j) y(i, j) += a(i, k) * b(k, j);
  return y;
}
Matrix operator+(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

struct Normed {
  Matrix unit;                  // (x - mean) / deviation
  std::vector<double> inverse;  // 1 / deviation
};
Normed normed(const Matrix& x) {
  Normed n{x, {}};
  const auto width = static_cast<double>(x.columns);
  for (int64_t r = 0; r < x.rows; ++r) {
    double mean = 0, square = 0;
    for (int64_t c = 0; c < x.columns; ++c) mean += x(r, c) / width;
    for (int64_t c = 0; c < x.columns; ++c) square += std::pow(x(r, c) - mean, 2) / width;
    n.inverse.push_back(1 / std::sqrt(square + 1e-5));
    for (int64_t c = 0; c < x.columns; ++c) n.unit(r, c) = (x(r, c) - mean) * n.inverse.back();
  }
  return n;
}
Matrix norm_backward(const Normed& n, const Matrix& weight, const Matrix& dy) {
  Matrix dx = dy;
  const auto width = static_cast<double>(dy.columns);
  for (int64_t r = 0; r < dy.rows; ++r) {
    double mean = 0, along = 0;
    for (int64_t c = 0; c < dy.columns; ++c) {
      const double g = dy(r, c) * weight(0, c);
      mean += g / width;
      along += g * n.unit(r, c) / width;
    }
    for (int64_t c = 0; c < dy.columns; ++c)
      dx(r, c) = (dy(r, c) * weight(0, c) - mean - n.unit(r, c) * along) *
                 n.inverse[static_cast<size_t>(r)];
  }
  return dx;
}

class FavorAttentionGoldenTest : public OpTest {
 protected:
  void SetUp() override {
    OpTest::SetUp();
    if (IsSkipped()) return;
    SCGRAFT_NEEDS_SHARED(kArrays);
    arrays_ = std::make_unique<Npz>(shared_path(kArrays));
    gradients_ = std::make_unique<Npz>(shared_path("golden/scbert_pretrain/grads.npz"));
    weights_ = std::make_unique<Checkpoint>(
        open_checkpoint(shared_path("golden/scbert_pretrain/panglao_pretrain.pth")));
  }
  Matrix recorded(const std::string& name, int64_t columns) const {
    std::vector<double> values = (*arrays_)[name].values;
    const auto rows = static_cast<int64_t>(values.size()) / columns;
    return {rows, columns, std::move(values)};
  }
  Matrix weight(const std::string& name) const {
    const Tensor& t = weights_->tensor(name);
    std::vector<double> values(static_cast<size_t>(t.numel()));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<double>(t.view().as<float>()[i]);
    return {t.rank() == 2 ? t.dim(0) : 1, t.dim(t.rank() - 1), std::move(values)};
  }
  static std::string in_layer(int layer, const std::string& name) {
    return cat("performer.net.layers.", layer, ".", name);
  }
  Packing packing() const { return packing_over(offsets_); }

  // The attention of one layer, run forward.
  struct Layer {
    Tensor q, k, v, projection, out;
    FavorContext context;
  };
  Layer forward(int layer, FavorOptions options) {
    const auto tokens = [&](const char* which) {
      return tensor({kRows, kInner}, recorded(cat("layer", layer, "_", which), kInner).values);
    };
    Layer l{tokens("q"),
            tokens("k"),
            tokens("v"),
            tensor({kFeatures, kHeadDim},
                   weight(in_layer(layer, "0.fn.fast_attention.projection_matrix")).values),
            poisoned({kRows, kInner}),
            FavorContext::take(ctx().activations(), kCells, kHeads, kFeatures, kHeadDim, dtype())};
    favor_attention(ctx(), l.q.view(), l.k.view(), l.v.view(), packing(), kHeads,
                    l.projection.view(), options, l.out.view(), l.context);
    return l;
  }
  // [cells, heads, tokens, head_dim] as [tokens, heads * head_dim].
  std::vector<double> recorded_out(int layer) const {
    const std::vector<double> by_head = (*arrays_)[cat("layer", layer, "_favor_out")].values;
    std::vector<double> packed(by_head.size());
    for (int64_t b = 0; b < kCells; ++b)
      for (int64_t a = 0; a < kHeads; ++a)
        for (int64_t t = 0; t < kTokens; ++t)
          for (int64_t d = 0; d < kHeadDim; ++d)
            packed[static_cast<size_t>((b * kTokens + t) * kInner + a * kHeadDim + d)] =
                by_head[static_cast<size_t>(((b * kHeads + a) * kTokens + t) * kHeadDim + d)];
    return packed;
  }

  std::unique_ptr<Npz> arrays_, gradients_;
  std::unique_ptr<Checkpoint> weights_;
  const std::vector<int32_t> offsets_ = {0, 37, 74, 111};
};
INSTANTIATE_OP_TEST(FavorAttentionGoldenTest);

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}
double largest_of(const std::vector<double>& a) {
  return largest_difference(a, std::vector<double>(a.size(), 0.0));
}

TEST_P(FavorAttentionGoldenTest, OutputsOfBothLayers) {
  for (int layer : {0, 1}) {
    const std::vector<double> want = recorded_out(layer);
    const double limit = kGoldenActivation * std::max(1.0, largest_of(want));
    const Layer batch = forward(layer, {FavorStabiliser::batch});
    EXPECT_LT(largest_difference(values_of(batch.out.view()), want), limit);
    // The stabiliser of the cell is another one, and the recording tells them apart.
    const Layer cell = forward(layer, {FavorStabiliser::cell});
    EXPECT_GT(largest_difference(values_of(cell.out.view()), want), 4 * limit);
    EXPECT_LT(largest_difference(values_of(cell.out.view()), want), 1e-2);
  }
}

// Recorded features have the factor features^(-1/2), which the sums leave out.
TEST_P(FavorAttentionGoldenTest, SumsOverRecordedKeyFeatures) {
  const Layer layer = forward(0, {FavorStabiliser::batch});
  const std::vector<double> phi = (*arrays_)["layer0_phi_k"].values;
  const Matrix v = recorded("layer0_v", kInner);
  std::vector<double> mass(kCells * kHeads * kFeatures);
  std::vector<double> sums(mass.size() * kHeadDim);
  for (int64_t unit = 0; unit < kCells * kHeads; ++unit)
    for (int64_t t = 0; t < kTokens; ++t)
      for (int64_t j = 0; j < kFeatures; ++j) {
        const double psi = std::sqrt(static_cast<double>(kFeatures)) *
                           phi[static_cast<size_t>((unit * kTokens + t) * kFeatures + j)];
        mass[static_cast<size_t>(unit * kFeatures + j)] += psi;
        for (int64_t d = 0; d < kHeadDim; ++d)
          sums[static_cast<size_t>((unit * kFeatures + j) * kHeadDim + d)] +=
              psi * v(unit / kHeads * kTokens + t, unit % kHeads * kHeadDim + d);
      }
  EXPECT_LT(largest_difference(values_of(layer.context.mass), mass),
            kGoldenActivation * largest_of(mass));
  EXPECT_LT(largest_difference(values_of(layer.context.sums), sums),
            kGoldenActivation * largest_of(sums));
}

// From the loss back through the head, the last norm, the feed-forward half and the projection of
// the last layer, here in plain f64 code, to the recorded gradients of its q, k and v weights.
TEST_P(FavorAttentionGoldenTest, GradientsOfTheLastLayer) {
  const Matrix logits = recorded("logits", 7);
  const std::vector<double> labels = (*arrays_)["labels"].values;
  Matrix d_logits(kRows, 7);
  double counted = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    const auto label = static_cast<int64_t>(labels[static_cast<size_t>(r)]);
    if (label == 6) continue;  // not masked
    ++counted;
    double sum = 0;
    for (int64_t c = 0; c < 7; ++c) sum += std::exp(logits(r, c));
    for (int64_t c = 0; c < 7; ++c) d_logits(r, c) = std::exp(logits(r, c)) / sum - (c == label);
  }
  ASSERT_GT(counted, 0);
  for (double& x : d_logits.values) x /= counted;

  const Matrix mid = recorded("layer1_mid", kWidth);
  const Matrix last = mid + recorded("layer1_ff_out", kWidth);
  const Matrix d_last =
      norm_backward(normed(last), weight("norm.weight"), d_logits * weight("to_out.weight"));

  const Normed mid_normed = normed(mid);
  Matrix hidden = mid_normed.unit;
  const Matrix norm_weight = weight(in_layer(1, "1.norm.weight"));
  const Matrix norm_bias = weight(in_layer(1, "1.norm.bias"));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kWidth; ++c)
      hidden(r, c) = hidden(r, c) * norm_weight(0, c) + norm_bias(0, c);
  const Matrix w1 = weight(in_layer(1, "1.fn.fn.w1.weight"));
  const Matrix b1 = weight(in_layer(1, "1.fn.fn.w1.bias"));
  hidden = hidden * w1.transposed();
  Matrix d_hidden = d_last * weight(in_layer(1, "1.fn.fn.w2.weight"));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < hidden.columns; ++c) {
      const double x = hidden(r, c) + b1(0, c);
      d_hidden(r, c) *= 0.5 * (1 + std::erf(x / std::sqrt(2.0))) +
                        x * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
    }
  const Matrix d_mid = d_last + norm_backward(mid_normed, norm_weight, d_hidden * w1);
  const Matrix d_out = d_mid * weight(in_layer(1, "0.fn.to_out.weight"));

  const Layer layer = forward(1, {FavorStabiliser::batch});
  const Tensor dout = tensor({kRows, kInner}, d_out.values);
  Tensor gradients[3] = {poisoned({kRows, kInner}), poisoned({kRows, kInner}),
                         poisoned({kRows, kInner})};
  favor_attention_backward(ctx(), layer.q.view(), layer.k.view(), layer.v.view(), layer.out.view(),
                           dout.view(), packing(), kHeads, layer.projection.view(),
                           {FavorStabiliser::batch}, layer.context, gradients[0].view(),
                           gradients[1].view(), gradients[2].view());
  const Matrix x = recorded("layer1_attn_prenorm", kWidth);
  const char* names[3] = {"to_q", "to_k", "to_v"};
  for (int i = 0; i < 3; ++i) {
    const Matrix got = Matrix(kRows, kInner, values_of(gradients[i].view())).transposed() * x;
    const std::vector<double> want =
        (*gradients_)["grad." + in_layer(1, cat("0.fn.", names[i], ".weight"))].values;
    EXPECT_LT(largest_difference(got.values, want), kGoldenGradient * largest_of(want)) << names[i];
  }
}

}  // namespace
}  // namespace scgraft
