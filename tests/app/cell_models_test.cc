// SPDX-License-Identifier: Apache-2.0
// Whole runs of the program with models other than scGPT.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "io/h5ad.h"
#include "tests/app/program.h"
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
    if (arguments[0] != "inspect") arguments.insert(arguments.end(), {"-t", "1"});
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

  const Outcome without = run_here({"embed", query, "--model", in("model"), "-o", in("g.h5ad")});
  EXPECT_EQ(without.code, 11);
  EXPECT_THAT(without.err, HasSubstr("E-GENE-ORDER"));
  EXPECT_THAT(without.err, HasSubstr("--dictionaries DIR"));
}

TEST_F(CellModelVerbsTest, WhatIsWrittenForScgptAloneIsRefusedForOthers) {
  write_geneformer(in("model"), genes_);
  train("model");
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"adapter", "merge", in("run/adapter"), "-o", in("merged")},
        {"convert", in("model"), "-o", in("merged")}}) {
    const Outcome refused = run_here(command);
    EXPECT_EQ(refused.code, 11) << command[0];
    EXPECT_THAT(refused.err, HasSubstr("E-MODEL-FOLDER"));
    EXPECT_THAT(refused.err, HasSubstr("geneformer"));
    EXPECT_FALSE(std::filesystem::exists(in("merged")));
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
