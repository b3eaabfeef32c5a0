// SPDX-License-Identifier: Apache-2.0
#include "training/cell_sources.h"

#include <set>

#include "tests/training/tiny_cells.h"

namespace scgraft {
namespace {

TEST(LabelledCells, ShowsTheChosenCellsWithTheirLabels) {
  const TokenStore store = tiny_store(9);
  std::vector<int32_t> labels = tiny_labels(9);
  labels[4] = -1;
  const std::vector<int64_t> chosen = {1, 4, 8};
  LabelledCells source(store, chosen, labels);
  ASSERT_EQ(source.size(), 3);
  std::vector<CellView> views = {{}, {}, {}, {}, {}};  // of an earlier call
  source.view(std::vector<int64_t>{2, 1}, 0, views);
  ASSERT_EQ(views.size(), 2U);
  EXPECT_EQ(views[0].cell, 8);
  EXPECT_EQ(views[0].label, 2);
  EXPECT_EQ(views[0].genes.data(), store.view(8).genes.data());
  EXPECT_EQ(views[1].cell, 4);
  EXPECT_EQ(views[1].label, -1);
  EXPECT_TRUE(views[0].masked.empty());
}

struct Seen {
  std::vector<float> values, targets;
  std::vector<uint8_t> masked;
  bool operator==(const Seen&) const = default;
};

std::vector<Seen> seen(MaskedCells& source, const std::vector<int64_t>& cells, int64_t epoch) {
  std::vector<CellView> views;
  source.view(cells, epoch, views);
  std::vector<Seen> out;
  for (const CellView& v : views)
    out.push_back({{v.values.begin(), v.values.end()},
                   {v.targets.begin(), v.targets.end()},
                   {v.masked.begin(), v.masked.end()}});
  return out;
}

class MaskedCellsTest : public ::testing::Test {
 protected:
  static constexpr int64_t kCells = 12;
  const TokenStore store_ = tiny_store(kCells);
  const std::vector<int64_t> all_ = numbers(kCells);
  const MaskOptions options_{.ratio = 0.5, .mask_value = -1, .seed = 7};
};

TEST_F(MaskedCellsTest, HidesAShareOfTheValuesAndNeverThatOfCls) {
  MaskedCells source(store_, all_, options_);
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    const std::vector<Seen> cells = seen(source, all_, epoch);
    for (size_t c = 0; c < cells.size(); ++c) {
      const CellView truth = store_.view(static_cast<int64_t>(c));
      const auto genes = static_cast<int64_t>(truth.genes.size()) - 1;
      EXPECT_EQ(cells[c].masked[0], 0);
      EXPECT_EQ(std::count(cells[c].masked.begin(), cells[c].masked.end(), 1), genes / 2);
      for (size_t t = 0; t < truth.values.size(); ++t) {
        EXPECT_EQ(cells[c].targets[t], truth.values[t]);
        EXPECT_EQ(cells[c].values[t], cells[c].masked[t] != 0 ? -1.0f : truth.values[t]);
      }
    }
  }
}

TEST_F(MaskedCellsTest, DrawsMasksAnewInEveryEpoch) {
  MaskedCells source(store_, all_, options_);
  std::set<std::string> masks;
  for (int64_t epoch = 0; epoch < 10; ++epoch) {
    const std::vector<uint8_t> masked = seen(source, {3}, epoch)[0].masked;
    masks.emplace(masked.begin(), masked.end());
  }
  EXPECT_GE(masks.size(), 8U);
}

TEST_F(MaskedCellsTest, AMaskIsAFunctionOfSeedEpochAndCell) {
  MaskedCells source(store_, all_, options_);
  const std::vector<Seen> together = seen(source, all_, 2);
  const std::vector<int64_t> some = {9, 3};
  MaskedCells part(store_, some, options_);
  EXPECT_EQ(seen(part, {1}, 2)[0], together[3]);
  EXPECT_EQ(seen(part, {0, 1}, 2)[0], together[9]);
  MaskOptions other = options_;
  other.seed = 8;
  MaskedCells reseeded(store_, all_, other);
  EXPECT_NE(seen(reseeded, all_, 2), together);
}

}  // namespace
}  // namespace scgraft
