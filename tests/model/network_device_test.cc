// SPDX-License-Identifier: Apache-2.0
// The scGPT network on a CUDA device against the same network on the CPU.
#include <numeric>

#include "model/scgpt/network.h"
#include "runtime/random.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

constexpr ScgptConfig kTiny{
    .vocab = 60, .dim = 8, .heads = 2, .layers = 2, .ffn = 12, .dropout = 0.2};

struct Cells {
  std::vector<std::vector<int32_t>> genes;
  std::vector<std::vector<float>> values;
  std::vector<CellView> views;
};

Cells make_cells(const std::vector<int64_t>& lengths) {
  Cells cells;
  for (size_t c = 0; c < lengths.size(); ++c) {
    RandomStream random(7, RandomUse::simulate, static_cast<uint32_t>(c));
    auto& genes = cells.genes.emplace_back(static_cast<size_t>(lengths[c]));
    std::iota(genes.begin(), genes.end(), 0);
    auto& values = cells.values.emplace_back(1, 0.0f);
    // A value above what the encoder clamps at is among them.
    for (int64_t t = 1; t < lengths[c]; ++t)
      values.push_back(t == 2 ? 1000.0f : static_cast<float>(1 + random.below(12)));
  }
  for (size_t c = 0; c < lengths.size(); ++c)
    cells.views.push_back(
        {.cell = static_cast<int64_t>(30 + c), .genes = cells.genes[c], .values = cells.values[c]});
  return cells;
}

struct Pass {
  Tensor out;
  std::vector<Tensor> gradients;
};

// One forward and backward pass of everything but the heads, with dropout; results on the host.
Pass run(Device device, std::tuple<LayerRows, bool> of,
         const std::vector<std::string>& frozen = {}) {
  const auto [rows, pre_norm] = of;
  ScgptConfig config = kTiny;
  config.pre_norm = pre_norm;
  Context ctx(device, {.threads = 1});
  ctx.random() = {9, 4};
  ScgptNetwork net(config, {.classes = 3}, scgpt_initialiser(11));
  net.move_to(device);
  std::vector<Parameter*> trained;
  for (Parameter* p : net.encoder_parameters())
    if (std::none_of(frozen.begin(), frozen.end(),
                     [&](const std::string& prefix) { return p->name.starts_with(prefix); }))
      trained.push_back(p);
  make_trainable(trained);
  const Cells cells = make_cells({5, 1, 40, 3});
  TokenBatch batch;
  batch.assign(ctx, cells.views);
  Arena::Scope scope(ctx.activations());
  const EncodeOptions options{.training = true, .save = true, .rows = rows};
  const Shape shape{rows == LayerRows::cls ? batch.cells() : batch.tokens(), net.dim()};
  const TensorView out = scope.take(shape, DType::f32);
  net.encode(ctx, batch, options, out);
  Pass pass;
  pass.out = on_host(out);
  Tensor dout(shape, DType::f32);
  RandomStream random(3, RandomUse::simulate, 77);
  for (int64_t i = 0; i < dout.numel(); ++i)
    dout.as<float>()[i] = static_cast<float>(random.normal());
  const Tensor there = dout.to(device);
  Tensor scratch = there.clone();
  net.encode_backward(ctx, batch, options, scratch.view());
  for (const Parameter* p : trained) pass.gradients.push_back(on_host(p->grad.view()));
  return pass;
}

double largest_of(const Tensor& t) {
  double largest = 0;
  for (const double v : values_of(t.view())) largest = std::max(largest, std::abs(v));
  return largest;
}

// Relative to the largest element, as golden cases are.
void expect_near(const Tensor& got, const Tensor& want, double tolerance, double floor) {
  ASSERT_EQ(got.shape(), want.shape());
  const auto a = values_of(got.view()), b = values_of(want.view());
  const double allowed = tolerance * largest_of(want) + floor;
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], allowed) << "element " << i;
}

// Which rows the last layer makes, and whether the layers are pre-norm.
class NetworkOnDevice : public ::testing::TestWithParam<std::tuple<LayerRows, bool>> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, NetworkOnDevice,
                         ::testing::Combine(::testing::Values(LayerRows::all, LayerRows::cls),
                                            ::testing::Bool()),
                         [](const auto& p) {
                           return cat(std::get<0>(p.param) == LayerRows::all ? "all" : "cls",
                                      std::get<1>(p.param) ? "_pre_norm" : "");
                         });

TEST_P(NetworkOnDevice, GivesTheActivationsAndGradientsOfTheCpu) {
  const Pass cpu = run(Device::cpu(), GetParam());
  const Pass cuda = run(Device::cuda(), GetParam());
  expect_near(cuda.out, cpu.out, kGoldenActivation, kGoldenActivation);
  ASSERT_EQ(cuda.gradients.size(), cpu.gradients.size());
  for (size_t i = 0; i < cpu.gradients.size(); ++i) {
    SCOPED_TRACE(i);
    expect_near(cuda.gradients[i], cpu.gradients[i], kGoldenGradient, 1e-6);
  }
}

TEST_P(NetworkOnDevice, GivesTheGradientsAboveAFrozenFront) {
  const std::vector<std::string> frozen = {"encoder.", "value_encoder.",
                                           "transformer_encoder.layers.0."};
  const Pass cpu = run(Device::cpu(), GetParam(), frozen);
  const Pass cuda = run(Device::cuda(), GetParam(), frozen);
  ASSERT_EQ(cuda.gradients.size(), cpu.gradients.size());
  for (size_t i = 0; i < cpu.gradients.size(); ++i) {
    SCOPED_TRACE(i);
    expect_near(cuda.gradients[i], cpu.gradients[i], kGoldenGradient, 1e-6);
  }
}

TEST_P(NetworkOnDevice, RepeatsItsBits) {
  const Pass once = run(Device::cuda(), GetParam());
  const Pass again = run(Device::cuda(), GetParam());
  expect_same_bits(again.out.view(), once.out.view());
  for (size_t i = 0; i < once.gradients.size(); ++i)
    expect_same_bits(again.gradients[i].view(), once.gradients[i].view());
}

TEST(ParametersOnDevice, StartWithTheValuesOfTheCpu) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  ParameterSet set;
  Parameter& here = set.add("a", Tensor({3, 5}, DType::f32));
  initialise_uniform(here, 0.5, 3);
  Parameter there{"a", Tensor({3, 5}, DType::f32, Device::cuda()), {}};
  initialise_uniform(there, 0.5, 3);
  expect_same_bits(on_host(std::as_const(there.value).view()).view(),
                   std::as_const(here.value).view());
  EXPECT_TRUE(move_to({&here}, Device::cuda()));
  EXPECT_FALSE(move_to({&here}, Device::cuda()));
  EXPECT_EQ(here.value.device(), Device::cuda());
}

TEST(BatchOnDevice, HoldsTheNumbersOfTheHost) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  Context ctx(Device::cuda());
  TokenBatch host, device;
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{4, 1, 6}, {50, 40, 30}, {2}}) {  // memory grows, then is enough
    const Cells cells = make_cells(lengths);
    host.assign(cells.views);
    device.assign(ctx, cells.views);
    const auto same = [](ConstTensorView got, ConstTensorView want) {
      EXPECT_EQ(got.device(), Device::cuda());
      EXPECT_EQ(values_of(got), values_of(want));
    };
    same(device.unique_genes(), host.unique_genes());
    same(device.gene_index(), host.gene_index());
    same(device.value_index(), host.value_index());
    same(device.gene_uses().offsets, host.gene_uses().offsets);
    same(device.value_uses().tokens, host.value_uses().tokens);
    same(device.packing().cu_seqlens, host.packing().cu_seqlens);
    same(device.packing().cell_ids, host.packing().cell_ids);
    same(device.cell_rows().cu_seqlens, host.cell_rows().cu_seqlens);
    const std::vector<double> row_cells = values_of(device.packing().row_cells);
    ASSERT_EQ(static_cast<int64_t>(row_cells.size()), device.tokens());
    for (int64_t t = 0; t < device.tokens(); ++t)
      EXPECT_EQ(row_cells[static_cast<size_t>(t)],
                static_cast<double>(device.packing().cell_of(t)));
    EXPECT_EQ(device.gene_rows().row_cells.numel(), device.unique_genes().numel());
    EXPECT_EQ(device.value_rows().row_cells.numel(), device.unique_values().numel());
  }
}

}  // namespace
}  // namespace scgraft
