// SPDX-License-Identifier: Apache-2.0
#include "training/split.h"

#include <algorithm>
#include <map>
#include <set>

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> repeat(std::initializer_list<std::pair<int32_t, int>> runs) {
  std::vector<int32_t> labels;
  for (const auto& [label, n] : runs) labels.insert(labels.end(), static_cast<size_t>(n), label);
  return labels;
}

std::map<int32_t, int> count(const std::vector<int32_t>& labels, const std::vector<int64_t>& rows) {
  std::map<int32_t, int> counts;
  for (const int64_t row : rows) ++counts[labels[static_cast<size_t>(row)]];
  return counts;
}

// Every labelled row exactly once on one side, each side ascending.
void expect_partition(const std::vector<int32_t>& labels, const Split& split) {
  EXPECT_TRUE(std::is_sorted(split.train.begin(), split.train.end()));
  EXPECT_TRUE(std::is_sorted(split.validation.begin(), split.validation.end()));
  std::vector<int64_t> all = split.train;
  all.insert(all.end(), split.validation.begin(), split.validation.end());
  std::sort(all.begin(), all.end());
  std::vector<int64_t> want;
  for (size_t i = 0; i < labels.size(); ++i)
    if (labels[i] >= 0) want.push_back(static_cast<int64_t>(i));
  EXPECT_EQ(all, want);
}

TEST(StratifiedSplitTest, EachLabelGivesItsShare) {
  // 0.2 * (50, 30, 15, 4) = 10, 6, 3, 0.8; total round(0.2 * 99) = 20.
  const auto labels = repeat({{0, 50}, {1, 30}, {-1, 7}, {2, 15}, {3, 4}});
  const Split split = stratified_split(labels, 0.2, 0);
  expect_partition(labels, split);
  EXPECT_EQ(count(labels, split.validation),
            (std::map<int32_t, int>{{0, 10}, {1, 6}, {2, 3}, {3, 1}}));
}

TEST(StratifiedSplitTest, ALabelWithOneCellStaysInTraining) {
  const auto labels = repeat({{0, 3}, {1, 1}, {2, 1}, {3, 2}});
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Split split = stratified_split(labels, 0.5, seed);
    expect_partition(labels, split);
    const auto train = count(labels, split.train);
    EXPECT_EQ(train.size(), 4u) << "every label is trained on";
    EXPECT_EQ(train.at(1), 1);
    EXPECT_EQ(train.at(2), 1);
  }
}

TEST(StratifiedSplitTest, HasAtLeastOneValidationCell) {
  EXPECT_EQ(stratified_split(repeat({{0, 3}}), 0.01, 0).validation.size(), 1u);
}

TEST(StratifiedSplitTest, IsAFunctionOfTheSeed) {
  const auto labels = repeat({{0, 40}, {1, 40}});
  EXPECT_EQ(stratified_split(labels, 0.25, 3).validation,
            stratified_split(labels, 0.25, 3).validation);
  EXPECT_NE(stratified_split(labels, 0.25, 3).validation,
            stratified_split(labels, 0.25, 4).validation);
}

TEST(StratifiedSplitTest, EveryCellIsEquallyLikely) {
  const auto labels = repeat({{0, 10}});
  std::vector<int> hits(10, 0);
  for (uint64_t seed = 0; seed < 2000; ++seed)
    for (const int64_t row : stratified_split(labels, 0.3, seed).validation)
      ++hits[static_cast<size_t>(row)];
  // Binomial(2000, 0.3): mean 600, standard deviation 20.5; five of them.
  for (const int n : hits) EXPECT_NEAR(n, 600, 103);
}

TEST(StratifiedSplitTest, ErrorsSayWhatToDo) {
  expect_error("val_fraction must be above 0 and below 1, got 1", [] {
    stratified_split(repeat({{0, 3}}), 1, 0);
  });
  expect_error("a split needs a label with at least two cells", [] {
    stratified_split(repeat({{0, 1}, {1, 1}}), 0.5, 0);
  });
  expect_error("a split needs a label with at least two cells", [] {
    stratified_split(repeat({{-1, 9}}), 0.5, 0);
  });
}

TEST(GroupSplitTest, NoGroupIsOnBothSides) {
  std::vector<int32_t> labels;
  std::vector<int32_t> groups;
  for (int32_t i = 0; i < 400; ++i) {
    labels.push_back(i % 7 == 0 ? -1 : i % 5);
    groups.push_back((i * i + i / 3) % 13 - 1);  // -1 is a group too
  }
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const Split split = group_split(labels, groups, 0.2, seed);
    expect_partition(labels, split);
    std::set<int32_t> train;
    for (const int64_t row : split.train) train.insert(groups[static_cast<size_t>(row)]);
    for (const int64_t row : split.validation)
      EXPECT_FALSE(train.contains(groups[static_cast<size_t>(row)]));
    const double share = static_cast<double>(split.validation.size()) /
                         static_cast<double>(split.validation.size() + split.train.size());
    EXPECT_NEAR(share, 0.2, 0.1);
  }
}

TEST(GroupSplitTest, KeepsTheLabelMixWhereItCan) {
  // Ten groups of ten cells: nine with both labels, group 0 is all there is of label 2. Taking
  // group 0 would leave label 2 untrained, so it stays in training whatever the seed.
  std::vector<int32_t> labels;
  std::vector<int32_t> groups;
  for (int32_t g = 0; g < 10; ++g)
    for (int32_t i = 0; i < 10; ++i) {
      groups.push_back(g);
      labels.push_back(g == 0 ? 2 : i % 2);
    }
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Split split = group_split(labels, groups, 0.2, seed);
    EXPECT_EQ(split.validation.size(), 20u);
    EXPECT_EQ(count(labels, split.validation), (std::map<int32_t, int>{{0, 10}, {1, 10}}));
  }
}

TEST(GroupSplitTest, GroupsLargerThanTheShareStillLeaveBothSides) {
  const auto labels = repeat({{0, 30}});
  auto groups = repeat({{0, 10}, {1, 10}, {2, 10}});
  const Split small = group_split(labels, groups, 0.01, 0);
  EXPECT_EQ(small.validation.size(), 10u);
  const Split large = group_split(labels, groups, 0.99, 0);
  EXPECT_EQ(large.train.size(), 10u);
}

TEST(GroupSplitTest, OneGroupIsAnError) {
  const auto labels = repeat({{0, 5}, {-1, 5}});
  const auto groups = repeat({{4, 5}, {5, 5}});
  try {
    group_split(labels, groups, 0.1, 0);
    FAIL() << "no error";
  } catch (const DataError& error) {
    EXPECT_EQ(error.code(), "E-SPLIT");
    EXPECT_THAT(error.what(), ::testing::HasSubstr("at least two groups"));
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("split_by"));
  }
}

TEST(FoldsTest, ValidationPartsCoverEveryCellOnceAndStayStratified) {
  const auto labels = repeat({{0, 23}, {1, 11}, {-1, 3}, {2, 6}, {3, 1}});
  const std::vector<Split> folds = stratified_folds(labels, 5, 1);
  ASSERT_EQ(folds.size(), 5u);
  std::map<int64_t, int> seen;
  for (const Split& split : folds) {
    expect_partition(labels, split);
    for (const int64_t row : split.validation) ++seen[row];
    const auto counts = count(labels, split.validation);
    EXPECT_TRUE(counts.at(0) == 4 || counts.at(0) == 5);
    EXPECT_TRUE(counts.at(1) == 2 || counts.at(1) == 3);
    EXPECT_TRUE(counts.at(2) == 1 || counts.at(2) == 2);
    EXPECT_FALSE(counts.contains(3));
    EXPECT_EQ(split.validation.size(), 8u);  // 40 cells of labels that occur twice
  }
  EXPECT_EQ(seen.size(), 40u);
  for (const auto& [row, n] : seen) EXPECT_EQ(n, 1);
}

TEST(FoldsTest, Errors) {
  expect_error("at least 2 folds, got 1", [] { stratified_folds(repeat({{0, 9}}), 1, 0); });
  expect_error("5 folds need at least 5 cells", [] {
    stratified_folds(repeat({{0, 4}, {1, 1}}), 5, 0);
  });
}

}  // namespace
}  // namespace scgraft
