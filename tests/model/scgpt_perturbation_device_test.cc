// SPDX-License-Identifier: Apache-2.0
// Expression after perturbations, on every device of this build: what the original recorded, and
// which genes are read.
#include <cmath>

#include "io/npz.h"
#include "model/scgpt/load.h"
#include "model/scgpt/perturbation.h"
#include "tests/io/expect_file_error.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

const std::string kCase = "golden/scgpt_generator_perturb";
constexpr int64_t kVocab = 30;

struct Mode {
  const char* name;
  bool cuda = false;
  DType product = DType::f32;
  double tolerance = kGoldenActivation;  // in 16 bits of the largest element

  Device device() const { return cuda ? Device::cuda() : Device::cpu(); }
};
constexpr Mode kModes[] = {
    {.name = "cpu"},
    {.name = "cuda", .cuda = true},
    {.name = "cuda_bf16", .cuda = true, .product = DType::bf16, .tolerance = 3e-2},
    {.name = "cuda_f16", .cuda = true, .product = DType::f16, .tolerance = 4e-3},
};

// Columns of some cells: expression, and what is perturbed.
struct Table {
  std::vector<int32_t> genes;
  Tensor values, flags;

  Table(std::vector<int32_t> columns, int64_t cells)
      : genes(std::move(columns)),
        values({cells, std::ssize(genes)}, DType::f32),
        flags({cells, std::ssize(genes)}, DType::i32) {}
  PerturbedCells view() const {
    return {.genes = genes,
            .values = std::as_const(values).view(),
            .flags = std::as_const(flags).view()};
  }
  float& value(int64_t cell, int64_t gene) { return values.as<float>()[cell * width() + gene]; }
  int32_t& flag(int64_t cell, int64_t gene) { return flags.as<int32_t>()[cell * width() + gene]; }
  int64_t width() const { return std::ssize(genes); }

  // Some of the columns, of some of the cells.
  Table part(const std::vector<int64_t>& cells, const std::vector<int64_t>& columns) {
    std::vector<int32_t> kept;
    for (const int64_t g : columns) kept.push_back(genes[static_cast<size_t>(g)]);
    Table t(kept, std::ssize(cells));
    for (size_t c = 0; c < cells.size(); ++c)
      for (size_t i = 0; i < columns.size(); ++i) {
        t.value(static_cast<int64_t>(c), static_cast<int64_t>(i)) = value(cells[c], columns[i]);
        t.flag(static_cast<int64_t>(c), static_cast<int64_t>(i)) = flag(cells[c], columns[i]);
      }
    return t;
  }
};

// Cells of 12 genes, of which 3 and 7 are expressed in none and 5 in one of them only.
Table some_cells(int64_t cells) {
  std::vector<int32_t> genes;
  for (int32_t g = 0; g < 12; ++g) genes.push_back(29 - 2 * g);
  Table t(std::move(genes), cells);
  for (int64_t c = 0; c < cells; ++c) {
    for (int64_t g = 0; g < 12; ++g)
      if ((g + c) % 3 != 0 && g != 3 && g != 7 && (g != 5 || c == 2))
        t.value(c, g) = 0.25f * static_cast<float>(1 + (g * 5 + c) % 9);
    t.flag(c, c % 3) = 1;
  }
  return t;
}

class ScgptPerturbation : public ::testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (GetParam().cuda && cuda_device_count() == 0)
      GTEST_SKIP() << "this machine or build has no CUDA device";
    ctx_.emplace(GetParam().device());
  }
  Tensor predict(ScgptNetwork& net, const Table& table, PredictedGenes which) {
    net.set_precision(GetParam().product);
    net.move_to(GetParam().device());
    return predict_perturbation(*ctx_, net, table.view(), which);
  }
  static ScgptNetwork tiny(int64_t flags = 3) {
    ScgptConfig config;
    config.vocab = kVocab;
    config.dim = 16;
    config.heads = 2;
    config.layers = 2;
    config.ffn = 24;
    config.flags = flags;
    return {config, {.mvc = false}, scgpt_initialiser(5)};
  }

  std::optional<Context> ctx_;
};
INSTANTIATE_TEST_SUITE_P(Modes, ScgptPerturbation, ::testing::ValuesIn(kModes),
                         [](const auto& p) { return p.param.name; });

TEST_P(ScgptPerturbation, IsWhatTheOriginalPredicts) {
  SCGRAFT_NEEDS_SHARED(kCase);
  const auto arrays = read_npz(shared_path(kCase + "/arrays.npz"));
  const std::vector<double> src = values_of(arrays.at("src").view());
  const std::vector<double> values = values_of(arrays.at("values").view());
  const std::vector<double> flags = values_of(arrays.at("input_pert_flags").view());
  Table table(std::vector<int32_t>(src.begin(), src.begin() + 20), 4);
  for (int64_t i = 0; i < 80; ++i) {
    ASSERT_EQ(src[static_cast<size_t>(i)], src[static_cast<size_t>(i % 20)]);
    table.value(i / 20, i % 20) = static_cast<float>(values[static_cast<size_t>(i)]);
    table.flag(i / 20, i % 20) = static_cast<int32_t>(flags[static_cast<size_t>(i)]);
  }
  const ScgptModel model = load_scgpt(shared_path(kCase), {.all_styles = true});
  const std::vector<double> want = values_of(arrays.at("out_mlm_output").view());
  double largest = 1;
  for (const double v : want) largest = std::max(largest, std::abs(v));
  const double allowed = GetParam().tolerance * (GetParam().product == DType::f32 ? 1 : largest);
  // Every gene is expressed in one of the four cells.
  for (const PredictedGenes which : {PredictedGenes::all, PredictedGenes::expressed}) {
    const std::vector<double> got = values_of(predict(*model.network, table, which).view());
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], allowed) << i;
  }
}

TEST_P(ScgptPerturbation, ReadsWhatOneOfTheCellsExpressesAndLeavesTheOthersZero) {
  ScgptNetwork net = tiny();
  Table table = some_cells(4);
  const std::vector<int64_t> read = {0, 1, 2, 4, 5, 6, 8, 9, 10, 11};
  const Tensor got = predict(net, table, PredictedGenes::expressed);
  const Tensor want = predict(net, table.part({0, 1, 2, 3}, read), PredictedGenes::all);
  for (int64_t c = 0; c < 4; ++c) {
    for (const int64_t none : {3, 7}) EXPECT_EQ(got.as<float>()[c * 12 + none], 0.0f);
    for (int64_t i = 0; i < 10; ++i) {
      const float y = want.as<float>()[c * 10 + i];
      EXPECT_EQ(got.as<float>()[c * 12 + read[static_cast<size_t>(i)]], y);
      EXPECT_NE(y, 0.0f);
    }
  }
  // The other cells decide what is read: without the third the gene 5 is not.
  const Tensor fewer = predict(net, table.part({0, 1, 3}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}),
                               PredictedGenes::expressed);
  EXPECT_EQ(fewer.as<float>()[5], 0.0f);
  EXPECT_NE(got.as<float>()[5], 0.0f);
  // No gene at all.
  EXPECT_EQ(values_of(predict(net, table.part({0}, {3, 7}), PredictedGenes::expressed).view()),
            std::vector<double>(2, 0.0));
}

// More cells than go through the network together.
TEST_P(ScgptPerturbation, OtherCellsChangeNoBit) {
  ScgptNetwork net = tiny();
  Table table = some_cells(700);
  const std::vector<int64_t> columns = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const Tensor together = predict(net, table, PredictedGenes::all);
  for (const int64_t cell : {0, 1, 681, 682, 683, 699}) {
    const Tensor alone = predict(net, table.part({cell}, columns), PredictedGenes::all);
    expect_same_bits(alone.view(), together.view().rows(cell, cell + 1));
  }
}

TEST_P(ScgptPerturbation, AFlagChangesThePredictionOfItsCellAlone) {
  ScgptNetwork net = tiny();
  Table table = some_cells(3);
  const Tensor before = predict(net, table, PredictedGenes::all);
  table.flag(1, 7) = 1;
  const Tensor after = predict(net, table, PredictedGenes::all);
  expect_same_bits(after.view().rows(0, 1), before.view().rows(0, 1));
  expect_same_bits(after.view().rows(2, 3), before.view().rows(2, 3));
  EXPECT_NE(values_of(after.view().rows(1, 2)), values_of(before.view().rows(1, 2)));
  // A gene that none expresses is not read, and neither is its flag.
  table.flag(1, 7) = 0;
  const Tensor unread = predict(net, table, PredictedGenes::expressed);
  table.flag(1, 7) = 1;
  expect_same_bits(predict(net, table, PredictedGenes::expressed).view(), unread.view());
}

TEST_P(ScgptPerturbation, WhatDoesNotFitIsRefused) {
  ScgptNetwork net = tiny(), plain = tiny(0);
  const auto refused = [&](const std::string& part, const Table& table) {
    expect_error(part, [&] { predict(net, table, PredictedGenes::all); });
  };
  expect_file_error(ExitCode::model, "E-MODEL-STYLE", "does not predict perturbations",
                    [&] { predict(plain, some_cells(2), PredictedGenes::all); });
  Table table = some_cells(2);
  table.flag(1, 4) = 3;
  refused("the perturbation flag 3 is outside 0 to 2", table);
  table = some_cells(2);
  table.value(0, 1) = NAN;
  refused("not finite", table);
  table = some_cells(2);
  table.genes[2] = kVocab;
  refused("a gene is token 30, this model has 30", table);
  table = some_cells(2);
  table.flags = Tensor({3, 12}, DType::i32);
  refused("flags must be i32 [2, 12]", table);
  table = some_cells(2);
  table.genes.pop_back();
  refused("expression must be f32 [cells, 11]", table);
}

}  // namespace
}  // namespace scgraft
