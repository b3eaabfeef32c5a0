// SPDX-License-Identifier: Apache-2.0
#include "training/attribution.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>

#include "adapters/adapter.h"
#include "io/h5ad_writer.h"
#include "model/scbert/cells.h"
#include "runtime/log.h"
#include "tests/training/tiny_models.h"
#include "tests/training/tiny_study.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

// A model of 200 of the 300 genes of the study, backwards, and of 20 that the study lacks.
class AttributionTest : public ::testing::Test {
 protected:
  static constexpr int64_t kTokens = 221;

  const std::string& folder() {
    static const std::string folder = [this] {
      const Strings genes = H5ad::open(study_.atlas()).var().index();
      std::vector<std::string> known(genes.rbegin() + 50, genes.rend() - 50);
      for (int i = 0; i < 20; ++i) known.insert(known.begin() + 7 * i, cat("none", i));
      const std::string made = study_.fresh("scbert");
      write_scbert(made, known);
      return made;
    }();
    return folder;
  }
  static GeneAttribution attribute(Context& ctx, const std::string& file, CellModel& model,
                                   const AttributionOptions& options,
                                   const RunEvents& events = {}) {
    return attribute_genes(ctx, H5ad::open(file), model, model.preparation(), options, events);
  }
  GeneAttribution attribute(const std::string& file, const AttributionOptions& options = {}) {
    const auto model = open_cell_model(folder());
    return attribute(study_.ctx(), file, *model, options);
  }
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

  TinyStudy& study_ = TinyStudy::get();
};

// Against what the network says about each cell alone, and the counts of the file.
TEST_F(AttributionTest, ScoresAreTheMeanOfWhatTheGenesOfAGroupReceive) {
  const GeneAttribution got = attribute(study_.atlas(), {.by = "cell_type"});
  const H5ad file = H5ad::open(study_.atlas());
  const Categorical types = as_categorical(file.obs().read("cell_type"));
  EXPECT_EQ(got.groups, types.categories);
  ASSERT_EQ(got.genes.size(), 200U);
  EXPECT_EQ(got.match.matched, 200);

  ScbertModel model = load_scbert(folder(), {.heads = false});
  ScbertCells network(*model.network);
  const auto opened = open_cell_model(folder());
  const auto reader = opened->reader(study_.ctx(), file, opened->preparation());
  std::map<std::string, std::map<std::string, double>> score, with_gene;
  std::map<std::string, double> cells;
  TokenisedCells chunk;
  while (reader->next(chunk))
    for (int64_t i = 0; i < chunk.cells(); ++i) {
      const CellView view = chunk.view(i);
      TokenBatch batch;
      batch.assign(study_.ctx(), std::vector<CellView>{view});
      Tensor received({batch.tokens()}, DType::f32);
      model.network->attention_received(study_.ctx(), batch, ScbertNetwork::AttentionOf::attended,
                                        received.view());
      double all = 0;
      for (int64_t t = 0; t < kTokens; ++t) all += double{received.as<float>()[t]};
      EXPECT_NEAR(all, kTokens, 1e-3);
      const auto type = static_cast<size_t>(types.codes[static_cast<size_t>(view.cell)]);
      const std::string& name = types.categories[type];
      ++cells[name];
      const Strings genes = file.var().index();
      for (size_t g = 0; g < genes.size(); ++g) {
        const int32_t token = reader->match().token[g];
        if (token < 0) continue;
        score[name][genes[g]] += double{received.as<float>()[token]};
        with_gene[name][genes[g]] += view.genes[static_cast<size_t>(token)] > 0 ? 1 : 0;
      }
    }
  double expressed = 0;
  for (size_t group = 0; group < got.groups.size(); ++group) {
    const std::string& name = got.groups[group];
    EXPECT_EQ(static_cast<double>(got.cells[group]), cells[name]);
    for (size_t gene = 0; gene < got.genes.size(); ++gene) {
      const size_t at = group * got.genes.size() + gene;
      EXPECT_DOUBLE_EQ(got.score[at], score[name][got.genes[gene]] / cells[name]);
      EXPECT_EQ(static_cast<double>(got.with_gene[at]), with_gene[name][got.genes[gene]]);
      expressed += with_gene[name][got.genes[gene]];
    }
  }
  EXPECT_GT(expressed, 1000);
  EXPECT_LT(expressed, 120 * 200);
}

TEST_F(AttributionTest, WithoutAColumnAllCellsAreOneGroup) {
  const GeneAttribution all = attribute(study_.atlas());
  const GeneAttribution types = attribute(study_.atlas(), {.by = "cell_type"});
  EXPECT_EQ(all.groups, Strings{"all"});
  EXPECT_EQ(all.cells, std::vector<int64_t>{120});
  for (size_t gene = 0; gene < all.genes.size(); ++gene) {
    double sum = 0;
    int64_t cells = 0;
    for (size_t group = 0; group < types.groups.size(); ++group) {
      const size_t at = group * all.genes.size() + gene;
      sum += types.score[at] * static_cast<double>(types.cells[group]);
      cells += types.with_gene[at];
    }
    EXPECT_NEAR(all.score[gene], sum / 120, 1e-12);
    EXPECT_EQ(all.with_gene[gene], cells);
  }
}

TEST_F(AttributionTest, ChunksAndThreadsDoNotChangeABit) {
  const GeneAttribution want = attribute(study_.atlas(), {.by = "cell_type"});
  const auto model = open_cell_model(folder());
  for (const int64_t tokens : {int64_t{1}, 3 * kTokens, int64_t{1} << 20})
    for (const int threads : {1, 2}) {
      Context ctx(Device::cpu(), {.threads = threads});
      const GeneAttribution got =
          attribute(ctx, study_.atlas(), *model, {.by = "cell_type", .chunk_tokens = tokens});
      EXPECT_EQ(got.score, want.score) << tokens << " tokens, " << threads << " threads";
      EXPECT_EQ(got.with_gene, want.with_gene);
    }
}

TEST_F(AttributionTest, ShortMemoryChangesNothing) {
  const auto model = open_cell_model(folder());
  const AttributionOptions options{.chunk_tokens = 30 * kTokens};
  const auto run = [&](int64_t limit) {
    Context ctx(Device::cpu(), {.threads = 1, .memory_limit = limit});
    const GeneAttribution got = attribute(ctx, study_.atlas(), *model, options);
    return std::make_pair(got, ctx.activations().peak());
  };
  int warnings = 0;
  set_log_callback([&](LogLevel, const std::string& code, const std::string&) {
    warnings += code == "W-MICRO-BATCH" ? 1 : 0;
  });
  const auto [want, peak] = run(0);
  EXPECT_EQ(warnings, 0);
  const auto [got, less] = run(peak / 3);
  EXPECT_GT(warnings, 0);
  EXPECT_LE(less, peak / 3);
  EXPECT_EQ(got.score, want.score);
  EXPECT_EQ(got.with_gene, want.with_gene);

  // In the third chunk: what was added before is not added again.
  int chunks = 0;
  warnings = 0;
  RunEvents third;
  third.stop_requested = [&] {
    if (++chunks == 3) throw Error("nothing is left", "E-MEMORY");
    return false;
  };
  const GeneAttribution again = attribute(study_.ctx(), study_.atlas(), *model, options, third);
  set_log_callback(nullptr);
  EXPECT_EQ(warnings, 1);
  EXPECT_EQ(again.score, want.score);
  EXPECT_EQ(again.with_gene, want.with_gene);
  EXPECT_EQ(again.cells, want.cells);
}

TEST_F(AttributionTest, CellsWithoutALabelOrAKnownGeneAreInNoGroup) {
  Cells cells(study_.shifted());
  for (const size_t cell : {3, 7})
    for (size_t g = 0; g < cells.genes.size(); ++g) cells.at(cell, g) = 0;
  const std::string plain = cells.write(study_.fresh("cells.h5ad"));
  const std::string file = study_.fresh("grouped.h5ad");
  std::vector<int32_t> codes(40, 2);
  codes[1] = codes[2] = codes[3] = -1;
  codes[9] = 0;
  H5adWriter writer(plain, file, Overwrite::refuse);
  writer.add_categorical("kind", codes, {"one", "none", "many"});
  std::fill(codes.begin(), codes.end(), -1);
  writer.add_categorical("missing", codes, {"one"});
  writer.commit();

  const GeneAttribution got = attribute(file, {.by = "kind"});
  EXPECT_EQ(got.groups, (Strings{"one", "many"}));
  EXPECT_EQ(got.cells, (std::vector<int64_t>{1, 35}));
  EXPECT_EQ(got.without_genes, 2);
  EXPECT_EQ(got.without_label, 2);
  EXPECT_EQ(got.score.size(), 2 * got.genes.size());
  expect_code("E-GROUPS", "and a label in obs/missing",
              [&] { attribute(file, {.by = "missing"}); });
  expect_code("E-NO-COLUMN", "nothing", [&] { attribute(file, {.by = "nothing"}); });
}

TEST_F(AttributionTest, LargestComeFirstAndOfEqualsTheFirstOfTheFile) {
  GeneAttribution a;
  a.groups = {"a", "b"};
  a.genes = {"g0", "g1", "g2", "g3"};
  a.score = {1, 3, 3, 2, 9, 8, 7, 6};
  EXPECT_EQ(a.largest(0, 3), (std::vector<size_t>{1, 2, 3}));
  EXPECT_EQ(a.largest(0, 1), std::vector<size_t>{1});
  EXPECT_EQ(a.largest(1, 10), (std::vector<size_t>{0, 1, 2, 3}));
}

TEST_F(AttributionTest, OtherModelsAndPrefixesAreRefused) {
  const auto other = open_cell_model(study_.model());
  expect_code("E-ATTRIBUTE", "by the attention of scBERT, this model is scGPT",
              [&] { attribute(study_.ctx(), study_.atlas(), *other, {}); });
  const auto model = open_cell_model(folder());
  AdapterOptions options;
  options.type = "prefix";
  options.tokens = 2;
  const auto adapter = make_adapter(options, model->backbone(), 1);
  adapter->attach(model->backbone());
  expect_code("E-ATTRIBUTE", "puts rows among the keys",
              [&] { attribute(study_.ctx(), study_.atlas(), *model, {}); });
}

TEST_F(AttributionTest, AnAdapterChangesTheScores) {
  const auto model = open_cell_model(folder());
  const GeneAttribution before = attribute(study_.ctx(), study_.atlas(), *model, {});
  AdapterOptions options;
  options.type = "lora";
  options.rank = 2;
  options.targets = {"q", "k"};
  const auto adapter = make_adapter(options, model->backbone(), 1);
  adapter->attach(model->backbone());
  for (Parameter* p : adapter->parameters()) initialise_uniform(*p, 0.5, 1);
  model->backbone().parameters_updated();
  const GeneAttribution after = attribute(study_.ctx(), study_.atlas(), *model, {});
  double apart = 0;
  for (size_t i = 0; i < before.score.size(); ++i)
    apart = std::max(apart, std::abs(before.score[i] - after.score[i]));
  EXPECT_GT(apart, 1e-3);
}

TEST_F(AttributionTest, AStopRequestEndsWithAnError) {
  RunEvents events;
  events.stop_requested = [] { return true; };
  const auto model = open_cell_model(folder());
  EXPECT_THROW(attribute(study_.ctx(), study_.atlas(), *model, {}, events), StoppedError);
}

// Real cells, named by symbols: 165 of eleven purified populations.
TEST_F(AttributionTest, ReadsRealCells) {
  SCGRAFT_NEEDS_SHARED("data/zheng68k_165cells_counts.h5ad");
  const std::string path = shared_path("data/zheng68k_165cells_counts.h5ad");
  const H5ad file = H5ad::open(path);
  Strings genes;
  for (const std::string& gene : file.var().index())
    if (std::find(genes.begin(), genes.end(), gene) == genes.end() && genes.size() < 150)
      genes.push_back(gene);
  const std::string made = study_.fresh("scbert");
  write_scbert(made, genes);
  const auto model = open_cell_model(made);
  const GeneAttribution got = attribute(study_.ctx(), path, *model, {.by = "celltype"});
  EXPECT_EQ(got.groups.size(), 11U);
  int64_t cells = got.without_genes;
  for (const int64_t n : got.cells) cells += n;
  EXPECT_EQ(cells, 165);
  EXPECT_EQ(got.genes, genes);
  for (size_t group = 0; group < got.groups.size(); ++group) {
    double all = 0;
    for (size_t i = 0; i < genes.size(); ++i) {
      const size_t at = group * genes.size() + i;
      EXPECT_GT(got.score[at], 0);
      EXPECT_LE(got.with_gene[at], got.cells[group]);
      all += got.score[at];
    }
    // The token behind the genes has the rest.
    EXPECT_LT(all, 151);
    EXPECT_GT(all, 140);
  }
}

}  // namespace
}  // namespace scgraft
