// SPDX-License-Identifier: Apache-2.0
#include "training/annotator.h"

#include <gmock/gmock.h>

#include <cmath>

#include "tests/training/tiny_study.h"
#include "training/fine_tune.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

class AnnotatorTest : public ::testing::Test {
 protected:
  // Trained once, on values without ties.
  static const std::string& adapter() {
    static const std::string folder = [] {
      TinyStudy& study = TinyStudy::get();
      return fine_tune(study.ctx(), study.config(), "", false, {}).adapter;
    }();
    return folder;
  }
  Annotation annotate(const std::string& file, int threads = 1, const RunEvents& events = {}) {
    Context ctx(Device::cpu(), {.threads = threads});
    Annotator annotator(adapter(), {});
    return annotator.annotate(ctx, H5ad::open(file), "", "", events);
  }
  std::string write(const Cells& cells) { return cells.write(study_.fresh("cells.h5ad")); }

  TinyStudy& study_ = TinyStudy::get();
};

void expect_same_cell(const Annotation& a, int64_t i, const Annotation& b, int64_t j) {
  const auto x = static_cast<size_t>(i), y = static_cast<size_t>(j);
  EXPECT_EQ(a.label[x], b.label[y]);
  EXPECT_EQ(a.second[x], b.second[y]);
  EXPECT_EQ(a.logistic[x], b.logistic[y]);
  EXPECT_EQ(a.neighbours[x], b.neighbours[y]);
  EXPECT_EQ(std::bit_cast<uint32_t>(a.entropy[x]), std::bit_cast<uint32_t>(b.entropy[y]));
  expect_same_bits(a.probabilities.view().rows(i, i + 1), b.probabilities.view().rows(j, j + 1));
  expect_same_bits(a.embedding.view().rows(i, i + 1), b.embedding.view().rows(j, j + 1));
}

TEST_F(AnnotatorTest, SaysTheSameAboutACellInEveryWay) {
  const Annotation a = annotate(study_.shifted());
  ASSERT_EQ(a.label.size(), 40U);
  ASSERT_EQ(a.logistic.size(), 40U);
  ASSERT_EQ(a.neighbours.size(), 40U);
  EXPECT_EQ(a.without_genes, 0);
  const auto p = a.probabilities.as<float, 2>();
  for (int64_t i = 0; i < 40; ++i) {
    const auto at = static_cast<size_t>(i);
    double sum = 0, square = 0, entropy = 0;
    for (int64_t c = 0; c < p.dim(1); ++c) {
      const double v = static_cast<double>(p(i, c));
      sum += v;
      entropy -= v > 0 ? v * std::log(v) : 0;
      EXPECT_LE(p(i, c), a.confidence[at]);
      EXPECT_TRUE(c == a.label[at] || p(i, c) <= p(i, a.second[at])) << "runner-up";
    }
    for (int64_t d = 0; d < a.embedding.dim(1); ++d)
      square += std::pow(static_cast<double>(a.embedding.as<float, 2>()(i, d)), 2);
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_NEAR(square, 1, 1e-5);
    EXPECT_EQ(a.confidence[at], p(i, a.label[at]));
    EXPECT_EQ(a.margin[at], p(i, a.label[at]) - p(i, a.second[at]));
    EXPECT_FLOAT_EQ(a.entropy[at], static_cast<float>(entropy));
    EXPECT_GE(a.logistic[at], 0);
    EXPECT_GE(a.neighbours[at], 0);
  }
}

TEST_F(AnnotatorTest, ThreadsChangeNoBit) {
  const Annotation one = annotate(study_.shifted(), 1), three = annotate(study_.shifted(), 3);
  for (int64_t i = 0; i < 40; ++i) expect_same_cell(three, i, one, i);
}

// Values without ties: where equal values share a bin edge, the coin is tossed by the cell's number
// in its file (model/scgpt/token_reader.h).
TEST_F(AnnotatorTest, TheOrderOfCellsChangesNoBit) {
  Cells cells(study_.shifted());
  cells.make_distinct_log1p();
  const Annotation before = annotate(write(cells));
  std::vector<size_t> order(cells.cells.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = (i * 7 + 3) % order.size();
  cells.reorder_cells(order);
  const Annotation after = annotate(write(cells));
  for (size_t i = 0; i < order.size(); ++i)
    expect_same_cell(after, static_cast<int64_t>(i), before, static_cast<int64_t>(order[i]));
}

// The sums over the genes of a cell run in another order: 1e-5 of a probability.
TEST_F(AnnotatorTest, TheOrderOfGenesChangesRoundingOnly) {
  Cells cells(study_.shifted());
  cells.make_distinct_log1p();
  const Annotation before = annotate(write(cells));
  std::vector<size_t> order(cells.genes.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = (i * 7 + 3) % order.size();
  cells.choose_genes(order);
  const Annotation after = annotate(write(cells));
  EXPECT_EQ(after.label, before.label);
  EXPECT_EQ(after.logistic, before.logistic);
  for (int64_t i = 0; i < before.probabilities.numel(); ++i)
    EXPECT_NEAR(after.probabilities.as<float>()[i], before.probabilities.as<float>()[i], 1e-5f);
}

TEST_F(AnnotatorTest, MissingAndUnknownGenesAreNoObstacle) {
  Cells cells(study_.shifted());
  std::vector<size_t> some;
  for (size_t g = 0; g < cells.genes.size(); ++g)
    if (g % 3 != 0) some.push_back(g);
  cells.choose_genes(some);
  cells.genes[5] = "NO-SUCH-GENE";
  const Annotation a = annotate(write(cells));
  EXPECT_EQ(a.genes.columns(), static_cast<int64_t>(some.size()));
  EXPECT_EQ(a.genes.matched, static_cast<int64_t>(some.size()) - 1);
  for (const int32_t label : a.label) EXPECT_GE(label, 0);
}

TEST_F(AnnotatorTest, ACellWithoutKnownGenesHasNoLabelAndNoNumbers) {
  Cells cells(study_.shifted());
  for (size_t g = 0; g < cells.genes.size(); ++g) cells.at(7, g) = 0;
  const Annotation a = annotate(write(cells));
  EXPECT_EQ(a.without_genes, 1);
  EXPECT_EQ(a.label[7], -1);
  EXPECT_EQ(a.second[7], -1);
  for (const float v : {a.confidence[7], a.margin[7], a.entropy[7],
                        a.probabilities.as<float, 2>()(7, 0), a.embedding.as<float, 2>()(7, 0)})
    EXPECT_TRUE(std::isnan(v));
  EXPECT_GE(a.label[6], 0);
  EXPECT_GE(a.label[8], 0);
}

TEST_F(AnnotatorTest, EmbedsAsItAnnotates) {
  const Annotation a = annotate(study_.shifted());
  Annotator annotator(adapter(), {});
  const Embeddings e = embed_file(study_.ctx(), H5ad::open(study_.shifted()), annotator.model(),
                                  annotator.preparation(), {});
  expect_same_bits(e.values.view(), a.embedding.view());
}

TEST_F(AnnotatorTest, AStopRequestEndsWithAnError) {
  RunEvents events;
  events.stop_requested = [] { return true; };
  EXPECT_THROW(annotate(study_.shifted(), 1, events), StoppedError);
  const auto model = open_cell_model(study_.model());
  EXPECT_THROW(
      embed_file(study_.ctx(), H5ad::open(study_.shifted()), *model, model->preparation(), events),
      StoppedError);
}

TEST_F(AnnotatorTest, ABaseThatMovedIsAskedFor) {
  RunConfig config = study_.config();
  config.base_model = study_.fresh("moving");
  std::filesystem::copy(study_.model(), config.base_model);
  config.train.max_steps = 1;
  const std::string folder = fine_tune(study_.ctx(), config, "", false, {}).adapter;
  std::filesystem::remove_all(config.base_model);
  try {
    Annotator annotator(folder, {});
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ModelError& error) {
    EXPECT_EQ(error.code(), "E-MODEL-FOLDER");
    EXPECT_THAT(error.hint(), HasSubstr("--model DIR"));
  }
  EXPECT_NO_THROW(Annotator(folder, {.model = study_.model()}));
}

TEST_F(AnnotatorTest, AnotherBaseIsRefusedUnlessAllowed) {
  ScgptModel other = load_scgpt(study_.model());
  other.network = std::make_unique<ScgptNetwork>(
      other.config, ScgptNetwork::Heads{.decoder = false, .mvc = false, .classes = 0},
      scgpt_initialiser(99));
  const std::string folder = study_.fresh("other");
  make_directory(folder);
  save_scgpt(folder, other);
  try {
    Annotator annotator(adapter(), {.model = folder});
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ModelError& error) {
    EXPECT_EQ(error.code(), "E-ADAPTER-BASE");
  }
  EXPECT_NO_THROW(Annotator(adapter(), {.model = folder, .allow_base_mismatch = true}));
}

}  // namespace
}  // namespace scgraft
