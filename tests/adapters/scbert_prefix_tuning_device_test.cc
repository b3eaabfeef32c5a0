// SPDX-License-Identifier: Apache-2.0
// Keys and values of an adapter in the linear attention of scBERT.
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "tests/adapters/tiny_backbone.h"
#include "tests/testing/op_test.h"
#include "tests/tolerance.h"

namespace scgraft {
namespace {

constexpr int64_t kKeys = 3;

std::unique_ptr<Adapter> prefix_tuning(Backbone& network, int first_layer = 0) {
  AdapterOptions options;
  options.type = "prefix_tuning";
  options.tokens = kKeys;
  options.first_layer = first_layer;
  auto adapter = make_adapter(options, network, 1);
  for (Parameter* p : adapter->parameters()) {
    Tensor values(p->value.shape(), p->value.dtype());
    visit_real(values.dtype(), [&]<class T>(Type<T>) {
      for (int64_t i = 0; i < values.numel(); ++i)
        values.as<T>()[i] = static_cast<T>(
            std::sin(static_cast<double>(i * i) + static_cast<double>(p->name.size())));
    });
    copy(std::as_const(values).view(), p->value.view());
  }
  return adapter;
}

// One head's features in f64, by the formula in kernels/favor_attention.h.
//   shift  of keys the stabiliser; of queries none is given, theirs is the largest u
std::vector<double> features(const double* x, const Tensor& omega, std::optional<double> shift) {
  const int64_t count = omega.dim(0), width = omega.dim(1);
  const double c = std::pow(static_cast<double>(width), -0.25);
  std::vector<double> u;
  double square = 0;
  for (int64_t d = 0; d < width; ++d) square += c * c * x[d] * x[d];
  for (int64_t j = 0; j < count; ++j) {
    double sum = 0;
    for (int64_t d = 0; d < width; ++d) sum += c * x[d] * omega.as<double>()[j * width + d];
    u.push_back(sum);
  }
  const double largest = shift.value_or(*std::max_element(u.begin(), u.end()));
  for (double& value : u) value = std::exp(value - square / 2 - largest) + 1e-4;
  return u;
}

TEST(ScbertPrefixTuning, ItsKeysAndValuesAreInTheSumsOfEveryCell) {
  const auto network = tiny_scbert(1, DType::f64);
  const auto adapter = prefix_tuning(*network);
  adapter->attach(*network);
  EXPECT_EQ(adapter->parameters()[0]->value.shape(), (Shape{kKeys, 16}));
  const TinyBatch cells;
  const Packing packing = cells.batch().packing();
  std::map<std::string, Tensor> taps;
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    taps[name] = Tensor(view.shape(), view.dtype());
    copy(view, taps[name].view());
  };
  Context ctx;
  Tensor out({packing.tokens(), 16}, DType::f64);
  network->encode(ctx, cells.batch(), {.tap = &tap}, out.view());
  const int64_t heads = network->heads(), width = 16 / heads;
  const Tensor& omega = network->parameters()
                            .find("performer.net.layers.0.0.fn.fast_attention.projection_matrix")
                            ->value;
  const double c = std::pow(static_cast<double>(width), -0.25);
  const auto row = [&](const Tensor& t, int64_t i, int64_t h) {
    return t.as<double>() + i * 16 + h * width;
  };
  const Tensor &q = taps.at("layer0_q"), &k = taps.at("layer0_k"), &v = taps.at("layer0_v");
  const Tensor &more_k = adapter->parameters()[0]->value, &more_v = adapter->parameters()[1]->value;
  std::vector<double> want(static_cast<size_t>(q.numel()));
  for (int64_t cell = 0; cell < packing.cells(); ++cell) {
    // Over all heads of a cell.
    double stabiliser = -INFINITY;
    const auto raise = [&](const double* key) {
      for (int64_t j = 0; j < omega.dim(0); ++j) {
        double u = 0;
        for (int64_t d = 0; d < width; ++d) u += c * key[d] * omega.as<double>()[j * width + d];
        stabiliser = std::max(stabiliser, u);
      }
    };
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < kKeys; ++t) raise(row(more_k, t, h));
      for (int64_t m = packing.begin(cell); m < packing.end(cell); ++m) raise(row(k, m, h));
    }
    for (int64_t i = packing.begin(cell); i < packing.end(cell); ++i)
      for (int64_t h = 0; h < heads; ++h) {
        const std::vector<double> psi = features(row(q, i, h), omega, {});
        std::vector<double> sum(static_cast<size_t>(width), 0.0);
        double weights = 0;
        const auto see = [&](const double* key, const double* value) {
          const std::vector<double> of_key = features(key, omega, stabiliser);
          double weight = 0;
          for (size_t j = 0; j < psi.size(); ++j) weight += psi[j] * of_key[j];
          weights += weight;
          for (int64_t d = 0; d < width; ++d) sum[static_cast<size_t>(d)] += weight * value[d];
        };
        for (int64_t t = 0; t < kKeys; ++t) see(row(more_k, t, h), row(more_v, t, h));
        for (int64_t m = packing.begin(cell); m < packing.end(cell); ++m)
          see(row(k, m, h), row(v, m, h));
        for (int64_t d = 0; d < width; ++d)
          want[static_cast<size_t>(i * 16 + h * width + d)] = sum[static_cast<size_t>(d)] / weights;
      }
  }
  expect_close(taps.at("layer0_favor_out").view(), want, 64);
  adapter->detach(*network);
}

// The result and the gradients, in both layers and in the upper one alone.
TEST(ScbertPrefixTuning, ADeviceComputesWhatTheHostDoes) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine or build has no CUDA device";
  const auto pass = [](Device device, int first_layer) {
    Context ctx(device, {.threads = 1});
    const auto network = tiny_scbert();
    network->move_to(device);
    const auto adapter = prefix_tuning(*network, first_layer);
    adapter->attach(*network);
    make_trainable(adapter->parameters());
    const TinyBatch cells(&ctx);
    const Arena::Scope scope(ctx.activations());
    Tensor out({cells.batch().tokens(), 16}, DType::f32, device), dout(out.shape(), DType::f32);
    const EncodeOptions options{.training = true, .save = true};
    network->encode(ctx, cells.batch(), options, out.view());
    for (int64_t i = 0; i < dout.numel(); ++i)
      dout.as<float>()[i] = std::sin(static_cast<float>(i));
    Tensor consumed = dout.to(device);
    network->encode_backward(ctx, cells.batch(), options, consumed.view());
    std::vector<std::vector<double>> all = {values_of(on_host(out.view()).view())};
    for (const Parameter* p : adapter->parameters())
      all.push_back(values_of(on_host(p->grad.view()).view()));
    adapter->detach(*network);
    return all;
  };
  for (const int first_layer : {0, 1}) {
    const auto want = pass(Device::cpu(), first_layer), got = pass(Device::cuda(), first_layer);
    ASSERT_EQ(got.size(), want.size());
    for (size_t t = 0; t < want.size(); ++t) {
      double largest = 0;
      for (const double x : want[t]) largest = std::max(largest, std::abs(x));
      EXPECT_GT(largest, 0);
      for (size_t i = 0; i < want[t].size(); ++i)
        ASSERT_NEAR(got[t][i], want[t][i], kGoldenGradient * largest) << t << " " << i;
    }
  }
}

}  // namespace
}  // namespace scgraft
