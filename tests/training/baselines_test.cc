// SPDX-License-Identifier: Apache-2.0
#include "training/baselines.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "io/h5ad_rows.h"
#include "io/safetensors.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"
#include "training/metrics.h"

namespace scgraft {
namespace {

// ---- published numbers on real data -------------------------------------------------------

struct DataSet {
  SparseFeatures features;
  std::vector<int32_t> labels;
  std::vector<std::string> classes;
  std::vector<std::string> condition;  // of each cell; empty without such a column
};

DataSet load(const std::string& file, const std::string& slot, FeatureInput input,
             const std::string& label_key, const std::set<std::string>& without = {},
             const std::string& condition_key = "") {
  const H5ad data = H5ad::open(shared_path(file));
  const Categorical labels = as_categorical(data.obs().read(label_key));
  DataSet out;
  out.classes = labels.categories;
  std::vector<int64_t> wanted;
  std::optional<Column> condition;
  if (!condition_key.empty()) condition = data.obs().read(condition_key);
  for (int64_t i = 0; i < data.n_obs(); ++i) {
    const int32_t code = labels.codes[static_cast<size_t>(i)];
    if (code < 0 || without.contains(out.classes[static_cast<size_t>(code)])) continue;
    wanted.push_back(i);
    out.labels.push_back(code);
    if (condition) out.condition.push_back(condition->text(i));
  }
  RowReader reader(data, slot);
  for (SparseRows rows; reader.next(rows);) out.features.append(rows, wanted, input);
  return out;
}

// One bounded draw of numpy's legacy generator: bits masked to the next power of two, too large
// ones thrown away.
uint32_t draw_up_to(std::mt19937& random, uint32_t largest) {
  uint32_t mask = largest;
  for (int shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
  for (;;) {
    const auto v = static_cast<uint32_t>(random()) & mask;
    if (v <= largest) return v;
  }
}

// Which cells are in the test part of fold 0 of scikit-learn's StratifiedKFold(folds, shuffle=True,
// random_state=0), the folds that the published numbers used. Classes are numbered in order of
// appearance; the cells of each are dealt to the folds like the sorted labels are, then shuffled.
std::vector<bool> first_fold(const std::vector<int32_t>& labels, int folds) {
  std::map<int32_t, size_t> number;
  std::vector<size_t> code;
  for (const int32_t label : labels)
    code.push_back(number.emplace(label, number.size()).first->second);
  std::vector<size_t> sorted = code;
  std::sort(sorted.begin(), sorted.end());
  std::mt19937 random(0);
  std::vector<bool> test(labels.size(), false);
  for (size_t c = 0; c < number.size(); ++c) {
    std::vector<int> fold;
    for (int f = 0; f < folds; ++f)
      for (size_t i = static_cast<size_t>(f); i < sorted.size(); i += static_cast<size_t>(folds))
        if (sorted[i] == c) fold.push_back(f);
    for (size_t i = fold.size() - 1; i > 0; --i)
      std::swap(fold[i], fold[draw_up_to(random, static_cast<uint32_t>(i))]);
    size_t next = 0;
    for (size_t i = 0; i < code.size(); ++i)
      if (code[i] == c) test[i] = fold[next++] == 0;
  }
  return test;
}

struct Published {
  double accuracy;
  double macro_f1;
};

constexpr double kPublishedTolerance = 0.02;

void expect_scores(const char* name, const std::vector<int32_t>& truth,
                   const ClassPrediction& prediction, int32_t classes, Published want) {
  const ClassificationMetrics m =
      classification_metrics(truth, prediction.label, classes, prediction.probabilities.view());
  EXPECT_NEAR(m.accuracy, want.accuracy, kPublishedTolerance) << name;
  EXPECT_NEAR(m.macro_f1_present, want.macro_f1, kPublishedTolerance) << name;
  ::testing::Test::RecordProperty(cat(name, "_accuracy"), cat(m.accuracy));
  ::testing::Test::RecordProperty(cat(name, "_macro_f1"), cat(m.macro_f1_present));
}

void expect_published(const DataSet& data, const std::function<bool(size_t)>& is_test,
                      Published logistic, Published neighbours) {
  std::vector<int64_t> train_rows;
  std::vector<int64_t> test_rows;
  std::vector<int32_t> train_labels;
  std::vector<int32_t> test_labels;
  for (size_t i = 0; i < data.labels.size(); ++i) {
    (is_test(i) ? test_rows : train_rows).push_back(static_cast<int64_t>(i));
    (is_test(i) ? test_labels : train_labels).push_back(data.labels[i]);
  }
  const auto classes = static_cast<int32_t>(data.classes.size());
  Context ctx;
  const Baselines b =
      Baselines::fit(ctx, data.features.selected(train_rows), train_labels, classes);
  const SparseFeatures test = data.features.selected(test_rows);
  expect_scores("logistic", test_labels, b.logistic(ctx, test), classes, logistic);
  expect_scores("neighbours", test_labels, b.neighbours(ctx, test), classes, neighbours);
}

TEST(PublishedBaselines, Pbmc68kReduced) {
  SCGRAFT_NEEDS_SHARED("data/pbmc68k_reduced.h5ad");
  const DataSet d = load("data/pbmc68k_reduced.h5ad", "raw", FeatureInput::log1p, "bulk_labels");
  const std::vector<bool> test = first_fold(d.labels, 5);
  EXPECT_EQ(std::count(test.begin(), test.end(), true), 140);
  expect_published(d, [&](size_t i) { return test[i]; }, {0.857, 0.693}, {0.779, 0.589});
}

TEST(PublishedBaselines, Pbmc8k) {
  SCGRAFT_NEEDS_SHARED("data/pbmc8k_hvg200_counts.h5ad");
  const DataSet d = load("data/pbmc8k_hvg200_counts.h5ad", "X", FeatureInput::counts, "cell_type",
                         {"NA", "HSC", "Erythrocytes"});
  const std::vector<bool> test = first_fold(d.labels, 5);
  EXPECT_EQ(std::count(test.begin(), test.end(), true), 1488);
  expect_published(d, [&](size_t i) { return test[i]; }, {0.894, 0.893}, {0.882, 0.884});
}

TEST(PublishedBaselines, Zheng) {
  SCGRAFT_NEEDS_SHARED("data/zheng68k_165cells_counts.h5ad");
  const DataSet d =
      load("data/zheng68k_165cells_counts.h5ad", "X", FeatureInput::counts, "celltype");
  const std::vector<bool> test = first_fold(d.labels, 5);
  expect_published(d, [&](size_t i) { return test[i]; }, {1.0, 1.0}, {0.818, 0.794});
}

TEST(PublishedBaselines, KangAcrossConditions) {
  SCGRAFT_NEEDS_SHARED("data/kang_ifnb_valid_current.h5ad");
  const DataSet d = load("data/kang_ifnb_valid_current.h5ad", "X", FeatureInput::log1p, "cell_type",
                         {}, "condition");
  EXPECT_EQ(std::count(d.condition.begin(), d.condition.end(), "control"), 936);
  expect_published(d, [&](size_t i) { return d.condition[i] == "stimulated"; }, {0.687, 0.569},
                   {0.696, 0.596});
  expect_published(d, [&](size_t i) { return d.condition[i] == "control"; }, {0.739, 0.652},
                   {0.694, 0.641});
}

TEST(PublishedBaselines, MixologyAcrossPlates) {
  SCGRAFT_NEEDS_SHARED("data/sc_mixology/sc_mixology_3plates.h5ad");
  const DataSet d = load("data/sc_mixology/sc_mixology_3plates.h5ad", "X", FeatureInput::counts,
                         "cell_line", {}, "batch");
  expect_published(d, [&](size_t i) { return d.condition[i] == "p3"; }, {0.987, 0.984},
                   {0.980, 0.980});
}

}  // namespace
}  // namespace scgraft
