// SPDX-License-Identifier: Apache-2.0
// The scFoundation network on a CUDA device against the same network on the CPU.
#include <algorithm>
#include <cmath>

#include "kernels/add.h"
#include "model/scfoundation/cell_pooler.h"
#include "tests/model/tiny_scfoundation.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

struct Pass {
  std::vector<std::string> names = {"prediction", "cells"};
  std::vector<Tensor> values;
};

Tensor weights_like(const Tensor& t, uint32_t seed) {
  Tensor w(t.shape(), DType::f32);
  RandomStream random(3, RandomUse::simulate, seed);
  for (int64_t i = 0; i < t.numel(); ++i) w.as<float>()[i] = static_cast<float>(random.normal());
  return w;
}

// One pass with dropout through everything, and the gradients of it; results on the host.
Pass run(Device device, DType product) {
  Context ctx(device, {.threads = 1});
  ctx.random() = {9, 4};
  ScfoundationNetwork net(tiny_scfoundation_config(), kTinyFeatures, random_scfoundation(5));
  net.set_precision(product);
  net.move_to(device);
  std::vector<Parameter*> trained = net.parameters().all();
  std::erase_if(trained, [](const Parameter* p) { return p->name.ends_with("projection_matrix"); });
  make_trainable(trained);
  const TinyScfoundationCells cells;
  TokenBatch batch, whole;
  batch.assign(ctx, cells.views);
  whole.assign(ctx, cells.whole);
  Arena::Scope scope(ctx.activations());
  const EncodeOptions options{.training = true, .save = true};
  const TensorView x = scope.take({batch.tokens(), net.dim()}, DType::f32);
  const TensorView dx = scope.take(x.shape(), DType::f32),
                   dcells = scope.take(x.shape(), DType::f32);
  const TensorView prediction = scope.take({whole.tokens(), 1}, DType::f32);
  CellPooler embedding(CellPooling::all);
  const TensorView pooled = scope.take({batch.cells(), embedding.width(net.dim())}, DType::f32);
  net.encode(ctx, batch, options, x);
  net.decode(ctx, batch, x, whole, options, prediction);
  embedding.forward(ctx, x, batch.packing(), pooled);
  Pass pass;
  pass.values.push_back(on_host(prediction));
  pass.values.push_back(on_host(pooled));
  const Tensor dprediction = weights_like(pass.values[0], 1).to(device);
  const Tensor dpooled = weights_like(pass.values[1], 2).to(device);
  net.decode_backward(ctx, batch, whole, options, dprediction.view(), dx);
  embedding.backward(ctx, dpooled.view(), batch.packing(), dcells);
  add(ctx, dx, dcells, dx);
  net.encode_backward(ctx, batch, options, dx);
  for (const Parameter* p : trained) {
    pass.names.push_back(p->name);
    pass.values.push_back(on_host(p->grad.view()));
  }
  return pass;
}

class ScfoundationOnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  }
  // Length of the difference over that of what is wanted, of values [first, last).
  static double apart(const Pass& got, const Pass& want, size_t first, size_t last) {
    double square = 0, difference = 0;
    for (size_t i = first; i < last; ++i) {
      const auto a = values_of(got.values[i].view()), b = values_of(want.values[i].view());
      for (size_t j = 0; j < b.size(); ++j) {
        square += b[j] * b[j];
        difference += (a[j] - b[j]) * (a[j] - b[j]);
      }
    }
    return std::sqrt(difference / square);
  }
};

TEST_F(ScfoundationOnDevice, GivesTheResultsAndGradientsOfTheCpu) {
  const Pass cpu = run(Device::cpu(), DType::f32), cuda = run(Device::cuda(), DType::f32);
  ASSERT_EQ(cuda.values.size(), cpu.values.size());
  for (size_t i = 0; i < cpu.values.size(); ++i) {
    SCOPED_TRACE(cpu.names[i]);
    const auto a = values_of(cuda.values[i].view()), b = values_of(cpu.values[i].view());
    ASSERT_EQ(a.size(), b.size());
    double largest = 0;
    for (const double v : b) largest = std::max(largest, std::abs(v));
    for (size_t j = 0; j < b.size(); ++j)
      ASSERT_NEAR(a[j], b[j], kGoldenGradient * largest + 1e-6) << "element " << j;
  }
}

// A unit of relu so near zero that bf16 turns it off changes the gradients of everything below it:
// in that type only what is above the encoder's layers is compared.
TEST_F(ScfoundationOnDevice, StaysNearInSixteenBits) {
  const Pass cpu = run(Device::cpu(), DType::f32);
  const auto above = std::find(cpu.names.begin(), cpu.names.end(), "encoder.norm.weight");
  ASSERT_NE(above, cpu.names.end());
  for (const DType product : {DType::bf16, DType::f16}) {
    SCOPED_TRACE(product);
    const bool bf16 = product == DType::bf16;
    const Pass cuda = run(Device::cuda(), product);
    const auto results = static_cast<size_t>(2);
    const auto first = bf16 ? static_cast<size_t>(above - cpu.names.begin()) : results;
    EXPECT_LE(apart(cuda, cpu, 0, results), bf16 ? 2e-2 : 3e-3);
    EXPECT_LE(apart(cuda, cpu, first, cpu.values.size()), bf16 ? 2e-2 : 3e-3);
    EXPECT_GT(apart(cuda, cpu, first, cpu.values.size()), 1e-4) << "products were in f32";
  }
}

}  // namespace
}  // namespace scgraft
