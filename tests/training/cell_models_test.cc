// SPDX-License-Identifier: Apache-2.0
// Geneformer, scBERT and scFoundation where scGPT came first: training, annotating, embedding.
#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>

#include "io/checkpoint.h"
#include "io/sha256.h"
#include "tests/training/tiny_models.h"
#include "tests/training/tiny_study.h"
#include "training/annotator.h"
#include "training/fine_tune.h"
#include "training/labelled_data.h"
#include "training/split.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

// Folders of every kind for the genes of the simulated study.
const std::string& model_folder(const std::string& kind) {
  static std::map<std::string, std::string> made;
  if (!made.contains(kind)) {
    TinyStudy& study = TinyStudy::get();
    const std::vector<std::string> genes = H5ad::open(study.atlas()).var().index();
    made[kind] = study.fresh(kind);
    if (kind == "scbert")
      write_scbert(made[kind], genes);
    else if (kind == "scfoundation")
      write_scfoundation(made[kind], genes);
    else
      write_geneformer(made[kind], genes, kind == "geneformer_v2", 302);
  }
  return made[kind];
}

struct Run {
  const char* model;
  const char* trainable;
  const char* adapter;
  int64_t redraw_interval = 0;
};

std::string name_of_run(const ::testing::TestParamInfo<Run>& info) {
  std::string name = cat(info.param.model, "_", info.param.trainable, "_", info.param.adapter,
                         info.param.redraw_interval > 0 ? "_redrawn" : "");
  std::replace(name.begin(), name.end(), '+', '_');
  return name;
}

class CellModelRunTest : public ::testing::TestWithParam<Run> {
 protected:
  CellModelRunTest() {
    config_.base_model = model_folder(GetParam().model);
    config_.adapter.type = GetParam().adapter;
    config_.adapter.tokens = 2;
    config_.adapter.start = "identity";
    config_.train.trainable = GetParam().trainable;
    config_.train.max_steps = 30;
    config_.train.redraw_interval = GetParam().redraw_interval;
    config_.data.test_fraction = 0.3;
  }

  TinyStudy& study_ = TinyStudy::get();
  RunConfig config_ = study_.config();
};

INSTANTIATE_TEST_SUITE_P(
    What, CellModelRunTest,
    ::testing::Values(Run{"geneformer", "adapter", "lora"}, Run{"geneformer", "adapter", "encoder"},
                      Run{"geneformer", "adapter", "prefix"}, Run{"geneformer", "adapter", "token"},
                      Run{"geneformer_v2", "adapter", "token+lora"},
                      Run{"geneformer", "head", "none"}, Run{"geneformer", "all", "none"},
                      Run{"scbert", "adapter", "lora"}, Run{"scbert", "adapter", "lora", 7},
                      Run{"scbert", "adapter", "token"}, Run{"scbert", "adapter", "encoder"},
                      Run{"scbert", "adapter", "prefix"}, Run{"scbert", "head", "none"},
                      Run{"scbert", "all", "none"}, Run{"scfoundation", "adapter", "lora"},
                      Run{"scfoundation", "adapter", "encoder"},
                      Run{"scfoundation", "adapter", "prefix"},
                      Run{"scfoundation", "adapter", "token"}, Run{"scfoundation", "head", "none"},
                      Run{"scfoundation", "all", "none"}),
    name_of_run);

// What is not saved was not changed: base and saved tensors give the trained model again, and so
// its score on the cells that were kept for the test, bit for bit.
TEST_P(CellModelRunTest, ThirtyStepsLowerTheLossAndTheSavedModelScoresAsTheTrainedOne) {
  std::vector<double> losses;
  RunEvents events;
  events.step = [&](const StepReport& r) { losses.push_back(r.loss); };
  const std::string weights = find_checkpoint(config_.base_model);
  const std::string before = sha256_of_file(weights);
  const FineTuneResult result = fine_tune(study_.ctx(), config_, "scgraft train", false, events);
  ASSERT_EQ(losses.size(), 30U);
  const auto mean = [&](size_t begin) {
    return std::accumulate(losses.begin() + static_cast<ptrdiff_t>(begin),
                           losses.begin() + static_cast<ptrdiff_t>(begin) + 5, 0.0) /
           5;
  };
  // The wide head of scFoundation has learned how frequent the types are before the fifth step.
  const bool fast = config_.base_model == model_folder("scfoundation");
  EXPECT_LT(mean(25), 0.9 * (fast ? losses[0] : mean(0)));
  EXPECT_EQ(sha256_of_file(weights), before);

  const H5ad file = H5ad::open(study_.atlas());
  const CellSelection cells = select_labelled_cells(file, config_.data);
  Annotator annotator(result.adapter, {});
  const Annotation now = annotator.annotate(study_.ctx(), file, "", "", {});
  const std::vector<int64_t> test = stratified_split(cells.label, 0.3, 0).validation;
  ASSERT_EQ(std::ssize(test), result.test_cells);
  std::vector<int32_t> truth, label;
  Tensor p({std::ssize(test), now.probabilities.dim(1)}, DType::f32);
  for (size_t i = 0; i < test.size(); ++i) {
    const int64_t row = cells.rows[static_cast<size_t>(test[i])];
    truth.push_back(cells.label[static_cast<size_t>(test[i])]);
    label.push_back(now.label[static_cast<size_t>(row)]);
    for (int64_t c = 0; c < p.dim(1); ++c)
      p.as<float, 2>()(static_cast<int64_t>(i), c) = now.probabilities.as<float, 2>()(row, c);
  }
  const ClassificationMetrics is =
      classification_metrics(truth, label, static_cast<int32_t>(p.dim(1)), p.view());
  const ClassificationMetrics& was = result.scores.at("model");
  ASSERT_TRUE(was.nll && is.nll);
  EXPECT_EQ(*is.nll, *was.nll);
  EXPECT_EQ(is.confusion, was.confusion);

  const Embeddings e =
      embed_file(study_.ctx(), file, annotator.model(), annotator.preparation(), {});
  expect_same_bits(e.values.view(), now.embedding.view());
}

class CellModelTest : public ::testing::Test {
 protected:
  template <class F>
  static void expect_code(const std::string& code, const std::string& text, F run) {
    try {
      run();
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      EXPECT_THAT(error.what(), HasSubstr(text));
    }
  }
  void read(const std::string& folder, const std::string& file) {
    const auto model = open_cell_model(folder);
    TokenisedCells cells;
    model->reader(study_.ctx(), H5ad::open(file), model->preparation())->next(cells);
  }
  std::string fresh_geneformer(bool v2 = false, int64_t positions = 302) {
    const std::string folder = study_.fresh("model");
    write_geneformer(folder, H5ad::open(study_.atlas()).var().index(), v2, positions);
    return folder;
  }
  std::string trained(const std::string& kind) {
    RunConfig config = study_.config();
    config.base_model = model_folder(kind);
    config.train.max_steps = 1;
    return fine_tune(study_.ctx(), config, "", false, {}).adapter;
  }

  TinyStudy& study_ = TinyStudy::get();
};

TEST_F(CellModelTest, TheEmbeddingOfGeneformerIsTheMeanOverGenesOfTheLayerBeforeTheLast) {
  for (const std::string kind : {"geneformer", "geneformer_v2"}) {
    SCOPED_TRACE(kind);
    const bool v2 = kind == "geneformer_v2";
    const auto model = open_cell_model(model_folder(kind));
    const auto reader =
        model->reader(study_.ctx(), H5ad::open(study_.shifted()), model->preparation());
    TokenisedCells cells;
    ASSERT_TRUE(reader->next(cells));
    TokenBatch batch;
    batch.assign(std::vector<CellView>{cells.view(0), cells.view(1), cells.view(2)});
    EXPECT_EQ(cells.view(0).genes[0] == 2 && v2, v2);

    Backbone& net = model->backbone();
    Context& ctx = study_.ctx();
    Arena::Scope scope(ctx.activations());
    Tensor before, all({batch.tokens(), net.dim()}, DType::f32);
    const Tap tap = [&](const std::string& name, ConstTensorView view) {
      if (name != "layer1_in") return;
      before = Tensor(view.shape(), DType::f32);
      copy(view, before.view());
    };
    net.encode(ctx, batch, {.tap = &tap}, all.view());
    const auto mean = [&](const Tensor& rows) {
      std::vector<double> out;
      for (int64_t cell = 0; cell < 3; ++cell) {
        const int64_t begin = batch.packing().begin(cell) + (v2 ? 1 : 0);
        const int64_t end = batch.packing().end(cell) - (v2 ? 1 : 0);
        for (int64_t d = 0; d < net.dim(); ++d) {
          double sum = 0;
          for (int64_t i = begin; i < end; ++i)
            sum += static_cast<double>(rows.as<float, 2>()(i, d));
          out.push_back(sum / static_cast<double>(end - begin));
        }
      }
      return out;
    };
    Tensor embedding({3, net.dim()}, DType::f32);
    model->network().infer(ctx, batch, embedding.view(), {});
    expect_close(embedding.view(), mean(before), 300);
    const auto last = open_cell_model(model_folder(kind), {.embedding = CellEmbedding::last});
    last->network().infer(ctx, batch, embedding.view(), {});
    expect_close(embedding.view(), mean(all), 300);
    const auto first = open_cell_model(model_folder(kind), {.embedding = CellEmbedding::first});
    first->network().infer(ctx, batch, embedding.view(), {});
    std::vector<double> rows;
    for (int64_t cell = 0; cell < 3; ++cell)
      for (int64_t d = 0; d < net.dim(); ++d)
        rows.push_back(static_cast<double>(all.as<float, 2>()(batch.packing().begin(cell), d)));
    expect_close(embedding.view(), rows, 300);
  }
}

// The rows of a prefix are no genes of the cell.
TEST_F(CellModelTest, RowsOfAPrefixAreNoPartOfTheEmbedding) {
  RunConfig config = study_.config();
  config.base_model = model_folder("geneformer");
  config.adapter.type = "prefix";
  config.adapter.tokens = 3;
  config.train.max_steps = 5;
  Annotator annotator(fine_tune(study_.ctx(), config, "", false, {}).adapter, {});
  CellModel& model = annotator.model();
  const auto reader =
      model.reader(study_.ctx(), H5ad::open(study_.shifted()), annotator.preparation());
  TokenisedCells cells;
  ASSERT_TRUE(reader->next(cells));
  TokenBatch batch;
  batch.assign(std::vector<CellView>{cells.view(0), cells.view(1)});
  Context& ctx = study_.ctx();
  Arena::Scope scope(ctx.activations());
  const int64_t dim = model.backbone().dim();
  // Of the rows before the last layer, which have those of the prefix of the layer below.
  Tensor longer, embedding({2, dim}, DType::f32);
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    if (name != "layer1_in") return;
    longer = Tensor(view.shape(), DType::f32);
    copy(view, longer.view());
  };
  Tensor all({batch.tokens(), dim}, DType::f32);
  model.backbone().encode(ctx, batch, {.tap = &tap}, all.view());
  ASSERT_EQ(longer.dim(0), batch.tokens() + 2 * 3);
  model.network().infer(ctx, batch, embedding.view(), {});
  std::vector<double> want;
  int64_t at = 0;
  for (int64_t cell = 0; cell < 2; ++cell) {
    const int64_t n = batch.packing().length(cell);
    for (int64_t d = 0; d < dim; ++d) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i)  // the prefix lies behind the first token
        sum += static_cast<double>(longer.as<float, 2>()(at + (i == 0 ? 0 : i + 3), d));
      want.push_back(sum / static_cast<double>(n));
    }
    at += n + 3;
  }
  expect_close(embedding.view(), want, 300);
}

TEST_F(CellModelTest, ACellWithoutGenesHasNoLabelAndNoEmbedding) {
  for (const std::string kind : {"geneformer", "geneformer_v2", "scbert", "scfoundation"}) {
    SCOPED_TRACE(kind);
    Cells cells(study_.shifted());
    for (size_t g = 0; g < cells.genes.size(); ++g) cells.at(7, g) = 0;
    const std::string file = cells.write(study_.fresh("cells.h5ad"));
    Annotator annotator(trained(kind), {});
    const Annotation a = annotator.annotate(study_.ctx(), H5ad::open(file), "", "", {});
    EXPECT_EQ(a.without_genes, 1);
    // What has no gene has a token all the same, which networks count on.
    const auto reader =
        annotator.model().reader(study_.ctx(), H5ad::open(file), annotator.preparation());
    TokenisedCells tokens;
    ASSERT_TRUE(reader->next(tokens));
    EXPECT_EQ(tokens.empty, std::vector<int64_t>{7});
    EXPECT_EQ(tokens.view(7).genes.size(), kind == "geneformer"     ? 1U
                                           : kind == "scbert"       ? 301U
                                           : kind == "scfoundation" ? 3U
                                                                    : 2U);
    EXPECT_EQ(a.label[7], -1);
    EXPECT_TRUE(std::isnan(a.embedding.as<float, 2>()(7, 0)));
    EXPECT_GE(a.label[6], 0);
    EXPECT_FALSE(std::isnan(a.embedding.as<float, 2>()(8, 0)));
  }
}

TEST_F(CellModelTest, VersionsOfEnsemblIdsAreCutOff) {
  Cells cells(study_.shifted());
  std::vector<std::string> ids;
  for (size_t g = 0; g < cells.genes.size(); ++g) ids.push_back(cat("ENSG", 10000 + g));
  const std::string folder = study_.fresh("model");
  write_geneformer(folder, ids);
  cells.genes = ids;
  const std::string plain = cells.write(study_.fresh("plain.h5ad"));
  for (std::string& id : cells.genes) id += ".7";
  const std::string versions = cells.write(study_.fresh("versions.h5ad"));
  const auto model = open_cell_model(folder);
  TokenisedCells a, b;
  model->reader(study_.ctx(), H5ad::open(plain), model->preparation())->next(a);
  model->reader(study_.ctx(), H5ad::open(versions), model->preparation())->next(b);
  EXPECT_EQ(a.genes, b.genes);
  EXPECT_GT(a.genes.size(), 100U);
}

TEST_F(CellModelTest, RanksBinsAndEntriesNeedCounts) {
  Cells cells(study_.shifted());
  cells.make_distinct_log1p();
  const std::string file = cells.write(study_.fresh("log1p.h5ad"));
  for (const char* kind : {"geneformer", "scbert", "scfoundation"})
    expect_code("E-VALUES-COUNTS", "X holds log1p values", [&] { read(model_folder(kind), file); });
  for (float& x : cells.x) x -= 1;
  const std::string scaled = cells.write(study_.fresh("scaled.h5ad"));
  expect_code("E-VALUES-SCALED", "", [&] { read(model_folder("geneformer"), scaled); });
}

TEST_F(CellModelTest, DictionariesOfAnotherGenerationAreRefused) {
  const std::vector<std::string> genes = H5ad::open(study_.atlas()).var().index();
  // Medians of other genes, tokens of another number, none at all, two of them.
  const std::string mixed = fresh_geneformer();
  nlohmann::json medians;
  for (size_t i = 0; i < genes.size(); ++i) medians[cat("ENSG", i)] = 1.0;
  write_json(mixed + "/gene_median_dictionary.json", medians, Overwrite::replace);
  expect_code("E-DICTIONARY-MIX", "do not belong together", [&] { open_cell_model(mixed); });
  const std::string other = fresh_geneformer();
  write_dictionaries(other, genes, true);
  expect_code("E-VOCAB-SIZE", "vocab_size", [&] { open_cell_model(other); });
  const std::string none = fresh_geneformer();
  std::filesystem::remove(none + "/token_dictionary.json");
  expect_code("E-DICTIONARY", "no token_dictionary", [&] { open_cell_model(none); });
  EXPECT_NO_THROW(open_cell_model(none, {.dictionaries = model_folder("geneformer")}));
  const std::string two = fresh_geneformer();
  std::filesystem::copy(two + "/token_dictionary.json", two + "/token_dictionary_gc95M.json");
  expect_code("E-DICTIONARY", "are both there", [&] { open_cell_model(two); });
}

TEST_F(CellModelTest, LongerCellsThanThereArePositionsAreRefused) {
  const std::string folder = fresh_geneformer(true, 40);
  const auto model = open_cell_model(folder);
  Preparation p = model->preparation();
  EXPECT_EQ(p.max_length, 40);
  TokenisedCells cells;
  model->reader(study_.ctx(), H5ad::open(study_.atlas()), p)->next(cells);
  EXPECT_EQ(cells.view(0).genes.size(), 40U);
  model->limit_genes(p, 38);
  EXPECT_EQ(p.max_length, 40);
  model->limit_genes(p, 39);
  expect_code("E-PREPARE", "40 positions",
              [&] { model->reader(study_.ctx(), H5ad::open(study_.atlas()), p); });
}

TEST_F(CellModelTest, AnAdapterIsRefusedOnAModelOfAnotherKind) {
  const std::string adapter = trained("geneformer");
  for (const std::string& folder :
       {model_folder("scbert"), model_folder("scfoundation"), study_.model()})
    expect_code("E-ADAPTER-BASE", "of the kind geneformer",
                [&] { Annotator(adapter, {.model = folder, .allow_base_mismatch = true}); });
}

TEST_F(CellModelTest, AnAdapterIsRefusedWithOtherDictionaries) {
  const std::string adapter = trained("geneformer");
  std::vector<std::string> genes = H5ad::open(study_.atlas()).var().index();
  std::swap(genes[3], genes[4]);
  const std::string folder = study_.fresh("dictionaries");
  make_directory(folder);
  write_dictionaries(folder, genes, false);
  Annotator annotator(adapter, {.dictionaries = folder});
  expect_code("E-PREPARE", "not those that cells were prepared with",
              [&] { annotator.annotate(study_.ctx(), H5ad::open(study_.shifted()), "", "", {}); });
}

TEST_F(CellModelTest, TheOrderOfGenesOfScbertIsChecked) {
  const std::vector<std::string> genes = H5ad::open(study_.atlas()).var().index();
  const std::string folder = study_.fresh("model");
  write_scbert(folder, genes);
  put(folder + "/genes.txt", "A\nB\n");
  expect_code("E-GENE-ORDER", "lists 2 genes", [&] { open_cell_model(folder); });
  std::filesystem::remove(folder + "/genes.txt");
  expect_code("E-GENE-ORDER", "is not there", [&] { open_cell_model(folder); });

  const std::string adapter = trained("scbert");
  std::string turned;
  for (auto it = genes.rbegin(); it != genes.rend(); ++it) turned += *it + "\n";
  const std::string other = study_.fresh("order");
  make_directory(other);
  put(other + "/genes.txt", turned);
  Annotator annotator(adapter, {.dictionaries = other});
  expect_code("E-GENE-ORDER", "in their order",
              [&] { annotator.annotate(study_.ctx(), H5ad::open(study_.shifted()), "", "", {}); });
  Cells few(study_.shifted());
  few.choose_genes({0, 1, 2});
  const std::string file = few.write(study_.fresh("few.h5ad"));
  expect_code("E-GENE-FEW", "3 of the model's 300", [&] { read(model_folder("scbert"), file); });
}

// The table decides which entry a gene is: another one is refused, or it would be read in silence.
TEST_F(CellModelTest, TheOrderOfGenesOfScfoundationIsChecked) {
  std::vector<std::string> genes = H5ad::open(study_.atlas()).var().index();
  const std::string folder = study_.fresh("model");
  write_scfoundation(folder, genes);
  write_scfoundation_genes(folder, std::vector<std::string>{"A", "B"});
  expect_code("E-GENE-ORDER", "lists 2 genes, the model has 300", [&] { open_cell_model(folder); });
  std::filesystem::remove(folder + "/OS_scRNA_gene_index.19264.tsv");
  expect_code("E-GENE-ORDER", "is not there", [&] { open_cell_model(folder); });
  EXPECT_NO_THROW(open_cell_model(folder, {.dictionaries = model_folder("scfoundation")}));

  const std::string adapter = trained("scfoundation");
  std::swap(genes[3], genes[4]);
  const std::string other = study_.fresh("order");
  make_directory(other);
  write_scfoundation_genes(other, genes);
  Annotator annotator(adapter, {.dictionaries = other});
  expect_code("E-PREPARE", "not those that cells were prepared with",
              [&] { annotator.annotate(study_.ctx(), H5ad::open(study_.shifted()), "", "", {}); });
}

// The entry T, the one before the last, is what the run said, and prediction says it again.
TEST_F(CellModelTest, TheDepthThatCellsOfScfoundationAskForIsKeptWithTheAdapter) {
  RunConfig config = study_.config();
  config.train.max_steps = 1;
  config.data.target_depth = "f10";
  expect_code("E-PREPARE", "cells of scgpt ask for no sequencing depth",
              [&] { fine_tune(study_.ctx(), config, "", false, {}); });
  config.base_model = model_folder("scfoundation");
  Annotator annotator(fine_tune(study_.ctx(), config, "", false, {}).adapter, {});
  EXPECT_EQ(annotator.preparation().target_depth, "f10");
  const H5ad file = H5ad::open(study_.shifted());
  const auto entries = [&](const Preparation& preparation) {
    TokenisedCells cells;
    annotator.model().reader(study_.ctx(), file, preparation)->next(cells);
    const std::span<const float> values = cells.view(0).values;
    return std::pair(values[values.size() - 2], values[values.size() - 1]);
  };
  const auto [t, s] = entries(annotator.preparation());
  EXPECT_FLOAT_EQ(t, s + 1);
  Preparation bulk = annotator.preparation();
  bulk.ask_for_depth("bulk");
  EXPECT_EQ(entries(bulk).first, entries(bulk).second);
  EXPECT_NE(entries(bulk).second, s);
}

TEST_F(CellModelTest, TheEmbeddingOfScfoundationIsDepthsLargestAndMeanSideBySide) {
  const auto model = open_cell_model(model_folder("scfoundation"), {.classes = 3, .seed = 2});
  const auto reader =
      model->reader(study_.ctx(), H5ad::open(study_.shifted()), model->preparation());
  TokenisedCells cells;
  ASSERT_TRUE(reader->next(cells));
  TokenBatch batch;
  batch.assign(std::vector<CellView>{cells.view(0), cells.view(1), cells.view(2)});
  Context& ctx = study_.ctx();
  Arena::Scope scope(ctx.activations());
  const int64_t dim = model->backbone().dim();
  Tensor all({batch.tokens(), dim}, DType::f32);
  model->backbone().encode(ctx, batch, {}, all.view());
  std::vector<double> parts, largest;
  for (int64_t cell = 0; cell < 3; ++cell) {
    const int64_t begin = batch.packing().begin(cell), end = batch.packing().end(cell) - 2;
    const auto column = [&](auto take) {
      for (int64_t d = 0; d < dim; ++d)
        parts.push_back(take([&](int64_t i) {
          return static_cast<double>(std::as_const(all).as<float, 2>()(i, d));
        }));
    };
    EXPECT_EQ(batch.host_gene(end), 300);      // T
    EXPECT_EQ(batch.host_gene(end + 1), 301);  // S
    column([&](auto at) { return at(end + 1); });
    column([&](auto at) { return at(end); });
    column([&](auto at) {
      double most = at(begin);
      for (int64_t i = begin; i < end; ++i) most = std::max(most, at(i));
      return most;
    });
    column([&](auto at) {
      double sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += at(i);
      return sum / static_cast<double>(end - begin);
    });
    const size_t first = parts.size() - static_cast<size_t>(4 * dim);
    for (size_t d = first; d < first + static_cast<size_t>(dim); ++d)
      largest.push_back(std::max({parts[d], parts[d + static_cast<size_t>(dim)],
                                  parts[d + static_cast<size_t>(2 * dim)]}));
  }
  ASSERT_EQ(model->network().embedding_dim(), 4 * dim);
  Tensor embedding({3, 4 * dim}, DType::f32), logits({3, 3}, DType::f32),
      again(logits.shape(), DType::f32);
  model->network().infer(ctx, batch, embedding.view(), logits.view());
  expect_close(embedding.view(), parts, 300);
  model->network().infer(ctx, batch, {}, again.view());
  expect_same_bits(again.view(), logits.view());
  const auto max = open_cell_model(model_folder("scfoundation"),
                                   {.classes = 3, .seed = 2, .embedding = CellEmbedding::max});
  ASSERT_EQ(max->network().embedding_dim(), dim);
  Tensor rows({3, dim}, DType::f32);
  max->network().infer(ctx, batch, rows.view(), again.view());
  expect_close(rows.view(), largest, 300);
  expect_same_bits(again.view(), logits.view());
}

TEST_F(CellModelTest, WhatAModelCannotDoIsSaid) {
  expect_code("E-EMBEDDING-KIND", "scFoundation has", [&] {
    open_cell_model(model_folder("scfoundation"), {.embedding = CellEmbedding::first});
  });
  expect_code("E-EMBEDDING-KIND", "Geneformer has no", [&] {
    open_cell_model(model_folder("geneformer"), {.embedding = CellEmbedding::max});
  });
  expect_code("E-EMBEDDING-KIND", "scBERT has one",
              [&] { open_cell_model(model_folder("scbert"), {.embedding = CellEmbedding::last}); });
  expect_code("E-EMBEDDING-KIND", "\"mean\"", [] { parse_cell_embedding("mean"); });
  RunConfig config = study_.config();
  config.base_model = model_folder("scbert");
  config.data.hvg = "cell_ranger";
  config.data.hvg_count = 50;
  expect_code("E-PREPARE", "hvg must be none for scbert",
              [&] { fine_tune(study_.ctx(), config, "", false, {}); });
  config.data.hvg = "none";
  config.data.max_genes = 50;
  expect_code("E-PREPARE", "reads all its genes",
              [&] { fine_tune(study_.ctx(), config, "", false, {}); });
  config.base_model = model_folder("scfoundation");
  expect_code("E-PREPARE", "reads all expressed genes",
              [&] { fine_tune(study_.ctx(), config, "", false, {}); });
}

}  // namespace
}  // namespace scgraft
