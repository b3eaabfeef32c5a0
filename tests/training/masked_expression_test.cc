// SPDX-License-Identifier: Apache-2.0
#include "training/masked_expression.h"

#include "tests/training/tiny_cells.h"
#include "training/cell_sources.h"

namespace scgraft {
namespace {

class MaskedExpressionTest : public ::testing::Test {
 protected:
  static constexpr int64_t kCells = 8;

  MaskedExpressionTest() { source_.view(all_, 0, views_); }
  ObjectiveSums sums(std::span<const CellView> cells, int64_t chunk_cells = kCells) {
    ObjectiveSums out;
    for (size_t begin = 0; begin < cells.size(); begin += static_cast<size_t>(chunk_cells)) {
      TokenBatch batch;
      batch.assign(
          cells.subspan(begin, std::min(static_cast<size_t>(chunk_cells), cells.size() - begin)));
      objective_.run(ctx_, batch, false, 0, out);
    }
    return out;
  }

  Context ctx_{Device::cpu(), {.threads = 1}};
  const TokenStore store_ = tiny_store(kCells);
  const std::vector<int64_t> all_ = numbers(kCells);
  MaskedCells source_{store_, all_, {.ratio = 0.4, .mask_value = -1, .seed = 1}};
  std::vector<CellView> views_;
  ScgptNetwork net_ = tiny_net();
  MaskedExpression objective_{net_};
};

TEST_F(MaskedExpressionTest, WeightIsTheNumberOfHiddenValues) {
  int64_t hidden = 0;
  for (const CellView& v : views_) hidden += std::count(v.masked.begin(), v.masked.end(), 1);
  ASSERT_GT(hidden, 0);
  EXPECT_EQ(objective_.weight(views_), static_cast<double>(hidden));
  EXPECT_EQ(sums(views_).weight, static_cast<double>(hidden));
}

TEST_F(MaskedExpressionTest, OnlyHiddenValuesAreScored) {
  std::vector<std::vector<float>> targets;
  for (const CellView& v : views_) targets.emplace_back(v.targets.begin(), v.targets.end());
  std::vector<CellView> changed = views_;
  for (size_t c = 0; c < changed.size(); ++c) {
    for (size_t t = 0; t < targets[c].size(); ++t)
      if (changed[c].masked[t] == 0) targets[c][t] += 5;
    changed[c].targets = targets[c];
  }
  const double before = sums(views_).loss;
  EXPECT_EQ(sums(changed).loss, before);
  const auto first = std::find(changed[0].masked.begin(), changed[0].masked.end(), 1);
  targets[0][static_cast<size_t>(first - changed[0].masked.begin())] += 5;
  EXPECT_NE(sums(changed).loss, before);
}

TEST_F(MaskedExpressionTest, ChunksAddUpToTheSameBits) {
  const ObjectiveSums whole = sums(views_), cut = sums(views_, 3);
  EXPECT_EQ(cut.weight, whole.weight);
  EXPECT_EQ(cut.loss, whole.loss);
}

TEST_F(MaskedExpressionTest, GradientsAreTheSlopesOfTheLoss) {
  std::vector<Parameter*> trained;
  for (Parameter* p : net_.parameters().all())
    if (!p->name.starts_with("cls_decoder.")) trained.push_back(p);
  expect_slopes(objective_, net_, views_, trained);
}

TEST_F(MaskedExpressionTest, NeedsBothHeads) {
  ScgptConfig config = net_.config();
  ScgptNetwork bare(config, {.decoder = true, .mvc = false, .classes = 0}, scgpt_initialiser(1));
  expect_error("needs the expression decoder and the MVC head", [&] { MaskedExpression m(bare); });
}

}  // namespace
}  // namespace scgraft
