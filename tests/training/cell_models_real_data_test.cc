// SPDX-License-Identifier: Apache-2.0
// Tiny random models of Geneformer and scBERT learn real cells: 165 of eleven purified populations,
// of which four are learned; genes are named by symbols.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "io/h5ad_rows.h"
#include "tests/training/tiny_models.h"
#include "tests/training/tiny_study.h"
#include "training/annotator.h"
#include "training/fine_tune.h"

namespace scgraft {
namespace {

constexpr const char* kCells = "data/zheng68k_165cells_counts.h5ad";
constexpr const char* kVocabulary = "data/vocab/geneformer_v1_";

struct Run {
  const char* model;
  const char* adapter;
};

class CellModelsRealDataTest : public ::testing::TestWithParam<Run> {
 protected:
  void SetUp() override {
    SCGRAFT_NEEDS_SHARED(kCells);
    SCGRAFT_NEEDS_SHARED(cat(kVocabulary, "token_dictionary.json"));
    cells_ = shared_path(kCells);
  }
  std::string in(const std::string& name) const { return folder_ / name; }

  // With all tokens of the published V1 and its names of genes, and a pooler, as files of BertModel
  // have one.
  void write_published_geneformer() {
    make_directory(in("geneformer"));
    GeneformerNetwork network(tiny_geneformer_config(25426, 256), {.words = false, .pooler = true},
                              tiny_geneformer_values(1));
    save_parameters(network, in("geneformer"));
    write_json(in("geneformer/config.json"), network.config().to_json(), Overwrite::replace);
    for (const char* file : {"token_dictionary.json", "gene_median_dictionary.json"})
      std::filesystem::copy(shared_path(std::string(kVocabulary) + file),
                            in(cat("geneformer/", file)));
    std::filesystem::copy(shared_path(cat(kVocabulary, "gene_name_id_dict.json")),
                          in("geneformer/gene_name_id_dict.json"));
  }
  // Of the genes that at least a fifth of the cells express.
  void write_scbert_of_common_genes() {
    const H5ad file = H5ad::open(cells_);
    std::vector<int> expressed(static_cast<size_t>(file.n_vars()), 0);
    RowReader reader(file, "X");
    for (SparseRows rows; reader.next(rows);)
      for (const int32_t column : rows.column) ++expressed[static_cast<size_t>(column)];
    std::vector<std::string> genes;
    for (size_t g = 0; g < expressed.size(); ++g)
      if (expressed[g] * 5 > file.n_obs()) genes.push_back(file.var().index()[g]);
    ASSERT_GT(genes.size(), 200U);
    write_scbert(in("scbert"), genes);
  }

  TemporaryFolder folder_;
  std::string cells_;
};

INSTANTIATE_TEST_SUITE_P(What, CellModelsRealDataTest,
                         ::testing::Values(Run{"geneformer", "lora"}, Run{"geneformer", "encoder"},
                                           Run{"geneformer", "prefix"}, Run{"geneformer", "token"},
                                           Run{"scbert", "lora"}, Run{"scbert", "token"}),
                         [](const auto& run) {
                           return cat(run.param.model, "_", run.param.adapter);
                         });

TEST_P(CellModelsRealDataTest, ThirtyStepsLowerTheLossAndAnnotateAgreesWithTheRun) {
  const std::string kind = GetParam().model;
  if (kind == "geneformer")
    write_published_geneformer();
  else
    write_scbert_of_common_genes();
  RunConfig config;
  config.base_model = in(kind);
  config.output_dir = in("run");
  make_directory(config.output_dir);
  config.data.train = cells_;
  config.data.label_key = "celltype";
  // Four of the populations, which differ more than kinds of T cells do.
  const std::vector<std::string> kept = {"CD14+ Monocyte", "CD19+ B", "CD34+", "CD56+ NK"};
  const H5ad file = H5ad::open(cells_);
  const Categorical truth = as_categorical(file.obs().read("celltype"));
  for (const std::string& type : truth.categories)
    if (std::find(kept.begin(), kept.end(), type) == kept.end())
      config.data.exclude_labels.push_back(type);
  ASSERT_EQ(config.data.exclude_labels.size(), 7U);
  config.data.val_fraction = 0;
  config.data.test_fraction = 0.2;
  config.adapter.type = GetParam().adapter;
  config.adapter.r = 4;
  config.adapter.tokens = 4;
  config.train.max_steps = 30;
  config.train.micro_batch_size = 16;
  config.train.learning_rate = 2e-2;
  config.train.warmup_ratio = 0;
  std::vector<double> losses;
  RunEvents events;
  events.step = [&](const StepReport& r) { losses.push_back(r.loss); };
  Context ctx(Device::cpu(), {.threads = 1});
  const FineTuneResult result = fine_tune(ctx, config, "", false, events);
  ASSERT_EQ(losses.size(), 30U);
  const double first = std::accumulate(losses.begin(), losses.begin() + 5, 0.0) / 5;
  const double last = std::accumulate(losses.end() - 5, losses.end(), 0.0) / 5;
  EXPECT_LT(last, 0.9 * first) << first << " -> " << last;

  Annotator annotator(result.adapter, {});
  const Annotation now = annotator.annotate(ctx, file, "", "", {});
  EXPECT_EQ(now.without_genes, 0);
  int64_t right = 0, all = 0;
  for (size_t i = 0; i < now.label.size(); ++i) {
    const std::string& type = truth.categories[static_cast<size_t>(truth.codes[i])];
    if (std::find(kept.begin(), kept.end(), type) == kept.end()) continue;
    ++all;
    right += annotator.labels()[static_cast<size_t>(now.label[i])] == type;
  }
  EXPECT_EQ(all, 60);
  EXPECT_GT(right, 30) << "chance is 15";
  EXPECT_EQ(now.genes.columns(), 9621);
}

}  // namespace
}  // namespace scgraft
