// SPDX-License-Identifier: Apache-2.0
// Whole runs of the program with models other than scGPT.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "adapters/store.h"
#include "io/h5ad.h"
#include "model/model_folder.h"
#include "model/scfoundation/load.h"
#include "model/scgpt/load.h"
#include "runtime/error.h"
#include "tests/app/program.h"
#include "tests/testing/op_test.h"
#include "tests/training/tiny_models.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

class CellModelVerbsTest : public ::testing::Test {
 protected:
  CellModelVerbsTest() {
    ok({"simulate", "-o", in("study"), "--cells", "120", "--shifted-cells", "40", "--genes", "300",
        "--types", "4", "--signal", "2", "--depth", "400"});
    genes_ = H5ad::open(in("study/atlas.h5ad")).var().index();
  }
  std::string in(const std::string& name) const { return folder_ / name; }
  static Outcome ok(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--progress", "none", "--json"});
    const std::set<std::string> alone = {"inspect", "convert", "adapter"};
    if (!alone.contains(arguments[0])) arguments.insert(arguments.end(), {"-t", "1"});
    const Outcome run = run_here(arguments);
    EXPECT_EQ(run.code, 0) << arguments[0] << ": " << run.err;
    return run;
  }
  Outcome train(const std::string& model, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {
        "train",      "--model", in(model), "--data", in("study/atlas.h5ad"), "--label-key",
        "cell_type",  "-o",      in("run"), "-s",     "train.max_steps=3",    "-s",
        "adapter.r=2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return ok(arguments);
  }

  TemporaryFolder folder_;
  std::vector<std::string> genes_;
};

TEST_F(CellModelVerbsTest, GeneformerTrainsAnnotatesAndEmbeds) {
  write_geneformer(in("model"), genes_, true, 100);
  // The dictionaries lie elsewhere, as published.
  std::filesystem::create_directory(in("dictionaries"));
  for (const char* file : {"token_dictionary.json", "gene_median_dictionary.json"})
    std::filesystem::rename(in("model/") + file, in("dictionaries/") + file);
  EXPECT_GT(train("model", {"--dictionaries", in("dictionaries"), "--adapter", "lora+token"})
                .result()["trained_parameters"],
            0);
  const std::string query = in("study/shifted.h5ad"), adapter = in("run/adapter");
  const Outcome annotated = ok({"annotate", query, "--adapter", adapter, "-o", in("a.h5ad")});
  EXPECT_EQ(annotated.result()["cells"], 40);
  EXPECT_EQ(annotated.result()["genes_matched"], 300);
  EXPECT_TRUE(H5ad::open(in("a.h5ad")).obs().has("run"));
  EXPECT_EQ(H5ad::open(in("a.h5ad")).obsm("X_run").dim, 16);
  ok({"embed", query, "--adapter", adapter, "-o", in("e.h5ad")});
  EXPECT_EQ(H5ad::open(in("e.h5ad")).obsm("X_geneformer").dim, 16);
  const Outcome frozen =
      ok({"embed", query, "--model", in("model"), "--dictionaries", in("dictionaries"),
          "--embedding", "cls", "--max-genes", "50", "-o", in("f.h5ad")});
  EXPECT_EQ(frozen.result()["key"], "X_geneformer");

  const Outcome without = run_here({"embed", query, "--model", in("model"), "-o", in("g.h5ad")});
  EXPECT_EQ(without.code, 11);
  EXPECT_THAT(without.err, HasSubstr("E-DICTIONARY"));
  EXPECT_THAT(without.err, HasSubstr("--dictionaries DIR"));
  EXPECT_FALSE(std::filesystem::exists(in("g.h5ad")));
}

TEST_F(CellModelVerbsTest, ScbertTrainsAnnotatesAndEmbeds) {
  write_scbert(in("model"), genes_);
  train("model");
  const std::string query = in("study/shifted.h5ad");
  const Outcome annotated =
      ok({"annotate", query, "--adapter", in("run/adapter"), "-o", in("a.h5ad")});
  EXPECT_EQ(annotated.result()["genes_matched"], 300);
  ok({"embed", query, "--model", in("model"), "-o", in("e.h5ad")});
  EXPECT_EQ(H5ad::open(in("e.h5ad")).obsm("X_scBERT").dim, 16);
}

TEST_F(CellModelVerbsTest, ScbertAttributes) {
  write_scbert(in("model"), genes_);
  const std::string query = in("study/shifted.h5ad");
  const Outcome run = ok({"attribute", query, "--model", in("model"), "--by", "cell_type", "--top",
                          "7", "-o", in("genes.tsv")});
  EXPECT_EQ(run.json()["schema"], "scgraft/attribute/1");
  EXPECT_EQ(run.json()["outputs"][0]["path"], in("genes.tsv"));
  EXPECT_EQ(run.result()["cells"], 40);
  EXPECT_EQ(run.result()["genes_matched"], 300);
  ASSERT_EQ(run.result()["groups"].size(), 4U);

  std::istringstream lines(read_text(in("genes.tsv")));
  std::string line, group;
  std::getline(lines, line);
  EXPECT_EQ(line, "group\tgene\tscore\tcells");
  std::map<std::string, std::vector<double>> scores;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string gene, score, cells;
    std::getline(fields, group, '\t');
    std::getline(fields, gene, '\t');
    std::getline(fields, score, '\t');
    std::getline(fields, cells);
    EXPECT_NE(std::find(genes_.begin(), genes_.end(), gene), genes_.end()) << gene;
    EXPECT_LE(std::stoi(cells), run.result()["groups"][group].get<int>());
    scores[group].push_back(std::stod(score));
  }
  EXPECT_EQ(scores.size(), 4U);
  for (const auto& [name, of] : scores) {
    EXPECT_EQ(of.size(), 7U) << name;
    EXPECT_TRUE(std::is_sorted(of.rbegin(), of.rend())) << name;
    EXPECT_GT(of.back(), 1) << "the largest are above the mean";
  }

  // The same table on standard output, whatever runs at once; and with an adapter another one.
  const auto table = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"attribute", query, "--by", "cell_type",  "--top",
                                          "7",         "-o",  "-",    "--progress", "none"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome here = run_here(arguments);
    EXPECT_EQ(here.code, 0) << here.err;
    return here.out;
  };
  EXPECT_EQ(table({"--model", in("model"), "-t", "2"}), read_text(in("genes.tsv")));
  train("model", {"--adapter", "lora", "-s", "train.lr=0.05"});
  EXPECT_NE(table({"--adapter", in("run/adapter")}), read_text(in("genes.tsv")));

  const auto refused = [&](int code, const char* name, std::vector<std::string> arguments,
                           const std::string& output = {}) {
    const std::string to = output.empty() ? in("none.tsv") : output;
    arguments.insert(arguments.begin(), {"attribute", query, "-o", to});
    const Outcome outcome = run_here(arguments);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(name));
    EXPECT_FALSE(std::filesystem::exists(in("none.tsv")));
  };
  refused(2, "E-MISSING", {});
  refused(2, "E-USAGE", {"--model", in("model"), "--top", "0"});
  refused(10, "E-NO-COLUMN", {"--model", in("model"), "--by", "nothing"});
  refused(2, "E-EXISTS", {"--model", in("model")}, in("genes.tsv"));
  write_geneformer(in("ranks"), genes_);
  refused(2, "E-ATTRIBUTE", {"--model", in("ranks")});
  train("model", {"--adapter", "prefix", "--force"});
  refused(2, "E-ATTRIBUTE", {"--adapter", in("run/adapter")});
  const Outcome both = run_here({"attribute", query, "--model", in("model"), "-o", "-", "--json"});
  EXPECT_EQ(both.json()["error"]["code"], "E-OUTPUT");
}

TEST_F(CellModelVerbsTest, ScfoundationTrainsAnnotatesAndEmbeds) {
  write_scfoundation(in("model"), genes_);
  // The table lies elsewhere, as published.
  std::filesystem::create_directory(in("table"));
  const std::string table = "/OS_scRNA_gene_index.19264.tsv";
  std::filesystem::rename(in("model") + table, in("table") + table);
  EXPECT_GT(train("model", {"--dictionaries", in("table"), "--adapter", "lora"})
                .result()["trained_parameters"],
            0);
  const std::string query = in("study/shifted.h5ad"), adapter = in("run/adapter");
  const Outcome annotated = ok({"annotate", query, "--adapter", adapter, "-o", in("a.h5ad")});
  EXPECT_EQ(annotated.result()["genes_matched"], 300);
  EXPECT_EQ(H5ad::open(in("a.h5ad")).obsm("X_run").dim, 64);
  ok({"embed", query, "--adapter", adapter, "--embedding", "max", "-o", in("e.h5ad")});
  EXPECT_EQ(H5ad::open(in("e.h5ad")).obsm("X_scFoundation").dim, 16);
  ok({"embed", query, "--model", in("model"), "--dictionaries", in("table"), "-o", in("f.h5ad")});
  EXPECT_EQ(H5ad::open(in("f.h5ad")).obsm("X_scFoundation").dim, 64);
  const auto embedded = [&](const std::string& depth) {
    ok({"embed", query, "--model", in("model"), "--dictionaries", in("table"), "--target-depth",
        depth, "--force", "-o", in("f.h5ad")});
    return H5ad::open(in("f.h5ad")).obsm("X_scFoundation").values;
  };
  EXPECT_EQ(embedded("t4"), embedded("t4"));
  EXPECT_NE(embedded("t4"), embedded("bulk"));
  EXPECT_NE(embedded("a0"), embedded("bulk"));
  const Outcome unknown = run_here({"embed", query, "--model", in("model"), "--dictionaries",
                                    in("table"), "--target-depth", "deep", "-o", in("g.h5ad")});
  EXPECT_THAT(unknown.err, HasSubstr("a target depth is t4, f2 or a1"));

  const Outcome without = run_here({"embed", query, "--model", in("model"), "-o", in("g.h5ad")});
  EXPECT_EQ(without.code, 11);
  EXPECT_THAT(without.err, HasSubstr("E-GENE-ORDER"));
  EXPECT_THAT(without.err, HasSubstr("--dictionaries DIR"));
}

// A pre-trained scGPT folder of these genes.
void write_scgpt(const std::string& folder, std::span<const std::string> genes) {
  make_directory(folder);
  ScgptModel model;
  model.config = ScgptConfig::preset("tiny");
  model.config.vocab = std::ssize(genes) + 3;
  for (const std::string& gene : genes) model.vocabulary.append(gene);
  model.vocabulary.append_specials();
  model.network =
      std::make_unique<ScgptNetwork>(model.config, ScgptNetwork::Heads{}, scgpt_initialiser(1));
  save_scgpt(folder, model);
}

// Every backbone under the same tests.
struct Kind {
  const char* name;
  void (*write)(const std::string& folder, std::span<const std::string> genes);
};
class EveryModelTest : public CellModelVerbsTest, public ::testing::WithParamInterface<Kind> {
 protected:
  EveryModelTest() { GetParam().write(in("model"), genes_); }
  // The embeddings of the query with a model or an adapter.
  std::vector<float> embedded(const std::string& flag, const std::string& path) {
    const std::string out = in("embedded.h5ad");
    const Outcome run = ok({"embed", in("study/shifted.h5ad"), flag, path, "-o", out, "--force"});
    return H5ad::open(out).obsm(run.result()["key"]).values;
  }
};
const Kind kKinds[] = {
    {"scgpt", write_scgpt},
    {"geneformer", [](const auto& folder, auto genes) { write_geneformer(folder, genes, true); }},
    {"scbert", write_scbert},
    {"scfoundation", [](const auto& folder, auto genes) { write_scfoundation(folder, genes); }}};
INSTANTIATE_TEST_SUITE_P(Backbones, EveryModelTest, ::testing::ValuesIn(kKinds),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(EveryModelTest, MergedWeightsComputeWhatTheAdapterComputes) {
  for (const char* adapter : {"lora", "hra"}) {
    train("model", {"--adapter", adapter, "-s", "train.lr=0.05", "--force"});
    ok({"adapter", "merge", in("run/adapter"), "-o", in("merged"), "--force"});
    const std::vector<float> before = embedded("--model", in("model")),
                             attached = embedded("--adapter", in("run/adapter")),
                             merged = embedded("--model", in("merged"));
    ASSERT_EQ(attached.size(), merged.size());
    float largest = 0, apart = 0, moved = 0;
    for (size_t i = 0; i < merged.size(); ++i) {
      largest = std::max(largest, std::abs(attached[i]));
      apart = std::max(apart, std::abs(attached[i] - merged[i]));
      moved = std::max(moved, std::abs(attached[i] - before[i]));
    }
    EXPECT_LE(apart, 1e-5 * largest) << adapter;
    EXPECT_GT(moved, 1e-3 * largest) << adapter << ": training changed nothing to be merged";

    // The head came along, with the names of its classes.
    const LoadedBundle loaded = load_adapter(in("run/adapter"));
    ASSERT_FALSE(loaded.saved.empty());
    const auto whole = open_model_folder(in("merged"));
    for (const std::string& name : loaded.saved) {
      const Parameter* p = whole->backbone().parameters().find(name);
      ASSERT_NE(p, nullptr) << name;
      expect_same_bits(p->value.view(), loaded.tensors.tensor("base_model.model." + name).view());
    }
    EXPECT_EQ(read_json(in("merged/labels.json"), FileKind::model)["classes"],
              nlohmann::json(loaded.bundle.labels));
  }
}

TEST_P(EveryModelTest, ConvertKeepsWhatTheFolderIs) {
  const nlohmann::json run = ok({"convert", in("model"), "-o", in("converted")}).result();
  EXPECT_EQ(run["ignored"], nlohmann::json::array());
  const auto before = open_model_folder(in("model")), after = open_model_folder(in("converted"));
  const auto parameters = before->backbone().parameters().all();
  ASSERT_EQ(after->backbone().parameters().all().size(), parameters.size());
  for (const Parameter* p : parameters)
    expect_same_bits(after->backbone().parameters().find(p->name)->value.view(), p->value.view());
  EXPECT_EQ(embedded("--model", in("converted")), embedded("--model", in("model")));
  // What was converted once comes out the same.
  ok({"convert", in("converted"), "-o", in("again")});
  for (const auto& entry : std::filesystem::directory_iterator(in("converted"))) {
    const std::string name = entry.path().filename().string();
    EXPECT_EQ(read_text(in("again/") + name), read_text(in("converted/") + name)) << name;
  }
  EXPECT_EQ(ok({"inspect", in("converted")}).result()["model"], GetParam().name);
}

TEST_F(CellModelVerbsTest, AMergedGeneformerNamesItsClassesAsTransformersDoes) {
  write_geneformer(in("model"), genes_);
  train("model");
  ok({"adapter", "merge", in("run/adapter"), "-o", in("merged")});
  const nlohmann::json config = read_json(in("merged/config.json"), FileKind::model);
  EXPECT_EQ(config["architectures"], nlohmann::json{"BertForSequenceClassification"});
  ASSERT_EQ(config["id2label"].size(), 4U);
  for (const auto& [id, label] : config["id2label"].items())
    EXPECT_EQ(config["label2id"][label.get<std::string>()], std::stoi(id));
}

TEST_F(CellModelVerbsTest, AConvertedScfoundationHoldsOneBranch) {
  write_scfoundation(in("model"), genes_);
  ok({"convert", in("model"), "-o", in("converted")});
  try {
    load_scfoundation(in("converted"), {.branch = "gene"});
    FAIL() << "another branch was loaded";
  } catch (const ModelError& error) {
    EXPECT_EQ(error.code(), "E-CHECKPOINT");
    EXPECT_THAT(error.what(), HasSubstr("\"cell\""));
  }
}

TEST_F(CellModelVerbsTest, InspectKnowsTheFolders) {
  write_geneformer(in("geneformer"), genes_);
  write_scbert(in("scbert"), genes_);
  const nlohmann::json ranks = ok({"inspect", in("geneformer")}).result();
  EXPECT_EQ(ranks["model"], "geneformer");
  EXPECT_EQ(ranks["sizes"]["layers"], 2);
  EXPECT_EQ(ranks["sizes"]["vocabulary"], 302);
  EXPECT_GT(ranks["parameters"], 1000);
  EXPECT_EQ(ok({"inspect", in("geneformer/model.safetensors")}).result()["model"], "geneformer");
  const nlohmann::json bins = ok({"inspect", in("scbert")}).result();
  EXPECT_EQ(bins["model"], "scbert");
  EXPECT_EQ(bins["sizes"]["tokens"], 301);
  EXPECT_EQ(bins["sizes"]["width"], 16);
  write_scfoundation(in("scfoundation"), genes_);
  const nlohmann::json entries = ok({"inspect", in("scfoundation")}).result();
  EXPECT_EQ(entries["model"], "scfoundation");
  EXPECT_EQ(entries["section"], "cell/state_dict");
  EXPECT_EQ(entries["sizes"]["width"], 16);
  EXPECT_EQ(entries["sizes"]["tokens"], 302);
  for (const char* model : {"geneformer", "scbert", "scfoundation"}) {
    const nlohmann::json cells =
        ok({"inspect", in("study/atlas.h5ad"), "--model", in(model)}).result();
    EXPECT_EQ(cells["genes"]["matched"], 300) << model;
  }
}

}  // namespace
}  // namespace scgraft
