// SPDX-License-Identifier: Apache-2.0
#include "training/baselines.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "io/h5ad_rows.h"
#include "io/safetensors.h"
#include "runtime/random.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"
#include "training/metrics.h"

namespace scgraft {
namespace {

// ---- features -----------------------------------------------------------------------------

// Rows 10, 11, 12 of a matrix of counts: [1 0 3], [0 0 0], [0 4 0].
SparseRows chunk() {
  SparseRows rows;
  rows.first_row = 10;
  rows.columns = 3;
  rows.offsets = {0, 2, 2, 3};
  rows.column = {0, 2, 1};
  rows.value = {1, 3, 4};
  return rows;
}

float log1p_of(double v) { return static_cast<float>(std::log1p(v)); }

TEST(SparseFeatures, CountsBecomeLogSharesOfTenThousand) {
  SparseFeatures x;
  x.append(chunk(), std::vector<int64_t>{2, 10, 11, 12, 13}, FeatureInput::counts);
  EXPECT_EQ(x.columns, 3);
  EXPECT_EQ(x.offsets, (std::vector<int64_t>{0, 2, 2, 3}));
  EXPECT_EQ(x.column, (std::vector<int32_t>{0, 2, 1}));
  EXPECT_EQ(x.value, (std::vector<float>{log1p_of(2500), log1p_of(7500), log1p_of(10000)}));
}

TEST(SparseFeatures, LogValuesStayAndOnlyWantedRowsCome) {
  SparseFeatures x;
  x.append(chunk(), std::vector<int64_t>{12}, FeatureInput::log1p);
  x.append(chunk(), std::vector<int64_t>{1, 99}, FeatureInput::log1p);
  x.append(chunk(), std::vector<int64_t>{10}, FeatureInput::log1p);
  EXPECT_EQ(x.rows(), 2);
  EXPECT_EQ(x.value, (std::vector<float>{4, 1, 3}));
}

// The dropped gene still counts in the total of its cell.
TEST(SparseFeatures, GenesAreMovedAndDropped) {
  SparseFeatures x;
  x.columns = 5;
  x.append(chunk(), std::vector<int64_t>{10, 12}, FeatureInput::counts,
           std::vector<int32_t>{4, -1, 0});
  EXPECT_EQ(x.offsets, (std::vector<int64_t>{0, 2, 2}));
  EXPECT_EQ(x.column, (std::vector<int32_t>{0, 4}));
  EXPECT_EQ(x.value, (std::vector<float>{log1p_of(7500), log1p_of(2500)}));
  x.append(chunk(), std::vector<int64_t>{10}, FeatureInput::counts,
           std::vector<int32_t>{-1, -1, 0});
  EXPECT_EQ(x.value.back(), log1p_of(7500));
}

TEST(SparseFeatures, RefusesValuesAndColumnsThatDoNotFit) {
  const std::vector<int64_t> all = {10, 11, 12};
  SparseRows bad = chunk();
  bad.value[2] = -4;
  SparseFeatures x;
  expect_file_error(ExitCode::data, "E-VALUE", "cell 12 has the value -4, counts of 0 or more",
                    [&] { x.append(bad, all, FeatureInput::counts); });
  SparseFeatures scaled;
  scaled.append(bad, all, FeatureInput::log1p);  // negative values are fine where nothing is logged
  bad.value[0] = std::numeric_limits<float>::infinity();
  expect_file_error(ExitCode::data, "E-VALUE", "cell 10 has the value inf",
                    [&] { scaled.append(bad, all, FeatureInput::log1p); });
  SparseFeatures other;
  other.columns = 4;
  expect_error("4 columns were wanted, the chunk has 3",
               [&] { other.append(chunk(), all, FeatureInput::counts); });
  expect_error("two genes share column 1", [&] {
    other.append(chunk(), all, FeatureInput::counts, std::vector<int32_t>{1, 0, 1});
  });
  expect_error("column_of holds 4, there are 4 columns", [&] {
    other.append(chunk(), all, FeatureInput::counts, std::vector<int32_t>{1, 0, 4});
  });
}

TEST(SparseFeatures, TransposesAndSelects) {
  SparseFeatures x;
  x.append(chunk(), std::vector<int64_t>{10, 11, 12}, FeatureInput::log1p);
  const SparseFeatures t = x.transposed();
  EXPECT_EQ(t.columns, 3);
  EXPECT_EQ(t.offsets, (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(t.column, (std::vector<int32_t>{0, 2, 0}));
  EXPECT_EQ(t.value, (std::vector<float>{1, 4, 3}));
  const SparseFeatures s = x.selected(std::vector<int64_t>{2, 0});
  EXPECT_EQ(s.offsets, (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(s.value, (std::vector<float>{4, 1, 3}));
  expect_error("row 3 was wanted, there are 3", [&] { x.selected(std::vector<int64_t>{3}); });
}

TEST(SparseFeatures, Multiplies) {
  Context ctx;
  SparseFeatures x;
  x.append(chunk(), std::vector<int64_t>{10, 11, 12}, FeatureInput::log1p);
  const std::vector<double> dense = {1, 2, 10, 20, 100, 200};
  std::vector<double> y(6, -1);
  multiply<double>(ctx, x, dense, 2, y);
  EXPECT_EQ(y, (std::vector<double>{301, 602, 0, 0, 40, 80}));
}

// ---- both classifiers ---------------------------------------------------------------------

// Three classes of cells, each with a gene of its own and noise on the rest.
SparseFeatures three_kinds(int64_t cells, uint32_t which) {
  RandomStream random(11, RandomUse::simulate, which);
  SparseFeatures x;
  x.columns = 20;
  for (int64_t i = 0; i < cells; ++i) {
    for (int32_t c = 0; c < 20; ++c) {
      const double v = c == i % 3 ? 4 + random.uniform() : random.uniform() - 0.5;
      if (v <= 0) continue;
      x.column.push_back(c);
      x.value.push_back(static_cast<float>(v));
    }
    x.offsets.push_back(static_cast<int64_t>(x.column.size()));
  }
  return x;
}

std::vector<int32_t> kinds(int64_t cells) {
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < cells; ++i) labels.push_back(static_cast<int32_t>(i % 3));
  return labels;
}

TEST(Baselines, TellSeparateClassesApart) {
  Context ctx;
  const Baselines b = Baselines::fit(ctx, three_kinds(60, 0), kinds(60), 3);
  const SparseFeatures test = three_kinds(30, 1);
  EXPECT_EQ(b.columns(), 20);
  EXPECT_EQ(b.logistic(ctx, test).label, kinds(30));
  EXPECT_EQ(b.neighbours(ctx, test).label, kinds(30));
}

// Cells without a label change nothing, wherever they stand.
TEST(Baselines, CellsWithoutALabelAreLeftOut) {
  Context ctx;
  SparseFeatures more = three_kinds(60, 0);
  std::vector<int32_t> labels = kinds(60);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < 60; ++i) {
    if (i % 7 == 0)
      labels[static_cast<size_t>(i)] = -1;
    else
      kept.push_back(i);
  }
  std::vector<int32_t> kept_labels;
  for (const int64_t i : kept) kept_labels.push_back(static_cast<int32_t>(i % 3));
  const Baselines a = Baselines::fit(ctx, more, labels, 3);
  const Baselines b = Baselines::fit(ctx, more.selected(kept), kept_labels, 3);
  for (const auto& [name, tensor] : b.tensors()) {
    SCOPED_TRACE(name);
    expect_same_bits(a.tensors().at(name).view(), tensor.view());
  }
}

TEST(Baselines, ClassesWithoutCellsAreNeverPredicted) {
  Context ctx;
  const Baselines b = Baselines::fit(ctx, three_kinds(30, 0), kinds(30), 5);
  const SparseFeatures test = three_kinds(9, 1);
  for (const ClassPrediction& p : {b.logistic(ctx, test), b.neighbours(ctx, test)}) {
    EXPECT_EQ(p.probabilities.shape(), (Shape{9, 5}));
    EXPECT_EQ(p.label, kinds(9));
    for (int64_t i = 0; i < 9; ++i)
      EXPECT_EQ(p.probabilities.as<float>()[i * 5 + 3] + p.probabilities.as<float>()[i * 5 + 4], 0);
  }
}

TEST(Baselines, ASingleClassIsAlwaysPredicted) {
  Context ctx;
  const Baselines b = Baselines::fit(ctx, three_kinds(3, 0), std::vector<int32_t>{1, 1, 1}, 2);
  const SparseFeatures test = three_kinds(2, 1);
  EXPECT_EQ(b.logistic(ctx, test).label, (std::vector<int32_t>{1, 1}));
  EXPECT_EQ(b.neighbours(ctx, test).label, (std::vector<int32_t>{1, 1}));
}

TEST(Baselines, RefuseDataWithoutLabelsOrGenes) {
  Context ctx;
  const SparseFeatures x = three_kinds(3, 0);
  expect_file_error(ExitCode::data, "E-BASELINE", "got 0 labelled cells of 3 and 20 genes", [&] {
    Baselines::fit(ctx, x, std::vector<int32_t>{-1, -1, -1}, 2);
  });
  SparseFeatures none;
  none.offsets = {0, 0};
  expect_file_error(ExitCode::data, "E-BASELINE", "and 0 genes",
                    [&] { Baselines::fit(ctx, none, std::vector<int32_t>{0}, 2); });
  expect_error("3 cells, 1 labels", [&] { Baselines::fit(ctx, x, std::vector<int32_t>{0}, 2); });
}

// ---- saving -------------------------------------------------------------------------------

TEST(BaselinesFile, GivesTheSamePredictions) {
  Context ctx;
  const Baselines b = Baselines::fit(ctx, three_kinds(60, 0), kinds(60), 4);
  const TemporaryFolder folder;
  const std::map<std::string, Tensor> saved = b.tensors();
  std::vector<NamedTensor> named;
  for (const auto& [name, tensor] : saved) named.push_back({name, tensor.view()});
  write_safetensors(folder / "baselines.safetensors", std::move(named), {}, Overwrite::refuse);
  const Safetensors file = Safetensors::open(folder / "baselines.safetensors");
  std::map<std::string, Tensor> tensors;
  for (const TensorInfo& info : file.tensors()) tensors.emplace(info.name, file.tensor(info.name));
  const Baselines loaded = Baselines::from_tensors(tensors, "baselines.safetensors");

  const SparseFeatures test = three_kinds(30, 1);
  expect_same_bits(loaded.logistic(ctx, test).probabilities.view(),
                   b.logistic(ctx, test).probabilities.view());
  expect_same_bits(loaded.neighbours(ctx, test).probabilities.view(),
                   b.neighbours(ctx, test).probabilities.view());
  EXPECT_EQ(loaded.logistic(ctx, test).label, b.logistic(ctx, test).label);
  EXPECT_EQ(loaded.neighbours(ctx, test).label, b.neighbours(ctx, test).label);
  EXPECT_EQ(loaded.columns(), 20);
  EXPECT_EQ(loaded.classes(), 4);
  for (const auto& [name, tensor] : loaded.tensors())
    expect_same_bits(tensor.view(), saved.at(name).view());
}

TEST(BaselinesFile, IsRefusedWhenDamaged) {
  Context ctx;
  const Baselines b = Baselines::fit(ctx, three_kinds(12, 0), kinds(12), 3);
  const auto damaged = [&](const std::string& code, const std::string& part,
                           const std::function<void(std::map<std::string, Tensor>&)>& damage) {
    SCOPED_TRACE(part);
    std::map<std::string, Tensor> tensors = b.tensors();
    damage(tensors);
    expect_model_error(code, part, [&] { Baselines::from_tensors(tensors, "b.safetensors"); });
  };
  using Tensors = std::map<std::string, Tensor>;
  for (const auto& [name, tensor] : b.tensors()) {
    damaged("E-TENSOR-MISSING", cat("b.safetensors: the baselines lack the tensor ", name),
            [&](Tensors& t) { t.erase(name); });
    damaged("E-TENSOR-DTYPE", cat(name, " should be"),
            [&](Tensors& t) { t.at(name) = Tensor(t.at(name).shape(), DType::f64); });
    damaged("E-TENSOR-SHAPE", cat(name, " should be ["), [&](Tensors& t) {
      t.at(name) = Tensor({1, 2, 3}, t.at(name).dtype());
    });
  }
  damaged("E-TENSOR-EXTRA", "unknown tensor new\\n",
          [](Tensors& t) { t.emplace("new\n", Tensor({1}, DType::f32)); });
  damaged("E-BASELINE", "svd.components holds values that are not finite", [](Tensors& t) {
    t.at("svd.components").as<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  });
  damaged("E-BASELINE", "neighbours.labels holds 3, values from 0 to 2",
          [](Tensors& t) { t.at("neighbours.labels").as<int32_t>()[0] = 3; });
  damaged("E-BASELINE", "logistic.classes should hold ascending classes",
          [](Tensors& t) { t.at("logistic.classes").as<int32_t>()[0] = 1; });
  damaged("E-BASELINE", "neighbours.k holds 0",
          [](Tensors& t) { t.at("neighbours.k").as<int32_t>()[0] = 0; });
  damaged("E-BASELINE", "classes holds -5",
          [](Tensors& t) { t.at("classes").as<int32_t>()[0] = -5; });
  damaged("E-BASELINE", "classes holds 2147483647",
          [](Tensors& t) { t.at("classes").as<int32_t>()[0] = 2147483647; });
  damaged("E-TENSOR-SHAPE", "logistic.bias should be [3], it is [2]", [](Tensors& t) {
    t.at("logistic.bias") = tensor_of({2}, DType::f32, {1, 2});
  });
  damaged("E-BASELINE", "neighbours.labels is empty",
          [](Tensors& t) { t.at("neighbours.labels") = Tensor({0}, DType::i32); });
}

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
                   const ClassPrediction& prediction, int32_t classes, Published want,
                   double tolerance) {
  const ClassificationMetrics m =
      classification_metrics(truth, prediction.label, classes, prediction.probabilities.view());
  EXPECT_NEAR(m.accuracy, want.accuracy, tolerance) << name;
  EXPECT_NEAR(m.macro_f1_present, want.macro_f1, tolerance) << name;
  ::testing::Test::RecordProperty(cat(name, "_accuracy"), cat(m.accuracy));
  ::testing::Test::RecordProperty(cat(name, "_macro_f1"), cat(m.macro_f1_present));
}

void expect_published(const DataSet& data, const std::function<bool(size_t)>& is_test,
                      Published logistic, Published neighbours,
                      double neighbours_tolerance = kPublishedTolerance) {
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
  expect_scores("logistic", test_labels, b.logistic(ctx, test), classes, logistic,
                kPublishedTolerance);
  expect_scores("neighbours", test_labels, b.neighbours(ctx, test), classes, neighbours,
                neighbours_tolerance);
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
  // The reference has 27 of 33 cells right with its seed 0, and up to 30 with seeds 1 to 5: the
  // random projection alone moves this small set by that much. One cell more or less is 0.0303.
  expect_published(
      d, [&](size_t i) { return test[i]; }, {1.0, 1.0}, {27.0 / 33, 0.794}, 0.0304);
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
