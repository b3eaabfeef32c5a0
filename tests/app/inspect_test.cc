// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "io/checkpoint.h"
#include "io/simulate.h"
#include "tests/app/program.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class InspectTest : public ::testing::Test {
 protected:
  // A simulated file; what is in it is known.
  std::string cells() {
    const std::string folder = folder_ / "study";
    const Outcome run = run_here({"simulate", "-o", folder, "--cells", "60", "--shifted-cells", "5",
                                  "--genes", "300", "--types", "4", "-q"});
    EXPECT_EQ(run.code, 0) << run.err;
    return folder + "/atlas.h5ad";
  }
  static nlohmann::json result(const std::string& path) {
    const Outcome run = run_here({"inspect", path, "--json"});
    EXPECT_EQ(run.code, 0) << run.err;
    return run.result();
  }
  TemporaryFolder folder_;
};

TEST_F(InspectTest, SaysWhatIsInAnH5ad) {
  const nlohmann::json found = result(cells());
  EXPECT_EQ(found["n_obs"], 60);
  EXPECT_EQ(found["n_vars"], 300);
  EXPECT_EQ(found["x"]["format"], "csr");
  EXPECT_EQ(found["x"]["dtype"], "float32");
  EXPECT_EQ(found["values"], "counts");
  EXPECT_EQ(found["gene_ids"], "symbol");
  EXPECT_EQ(found["obs"]["cell_type"]["kind"], "categorical");
  EXPECT_EQ(found["obs"]["cell_type"]["n_unique"], 4);
  EXPECT_EQ(found["obs"]["condition"]["n_unique"], 1);
  EXPECT_EQ(found["expression"]["slot"], "X");
}

TEST_F(InspectTest, TextHasAtMostTwelveLines) {
  const Outcome run = run_here({"inspect", cells()});
  EXPECT_EQ(run.code, 0);
  EXPECT_EQ(run.err, "");
  EXPECT_LE(std::count(run.out.begin(), run.out.end(), '\n'), 12);
  EXPECT_THAT(run.out, HasSubstr("60 cells x 300 genes"));
}

TEST_F(InspectTest, ContentDecidesAndNotTheName) {
  const std::string renamed = folder_ / "cells.safetensors";
  std::filesystem::copy_file(cells(), renamed);
  EXPECT_EQ(result(renamed)["n_obs"], 60);

  const Tensor tensor = tensor_of({2, 3}, DType::f32, {1, 2, 3, 4, 5, 6});
  const std::string weights = folder_ / "weights";
  write_safetensors(weights, {{"a.weight", tensor.view()}}, {}, Overwrite::refuse);
  const nlohmann::json found = result(weights);
  EXPECT_EQ(found["kind"], "checkpoint");
  EXPECT_EQ(found["tensors"], 1);
  EXPECT_EQ(found["parameters"], 6);
  EXPECT_EQ(found["fingerprint"], open_checkpoint(weights).fingerprint());
}

TEST_F(InspectTest, WeightsInSeveralFilesAreOneCheckpoint) {
  const Tensor tensor = tensor_of({2, 3}, DType::f32, {1, 2, 3, 4, 5, 6});
  const std::string one = folder_ / "one.safetensors", two = folder_ / "two.safetensors";
  write_safetensors(one, {{"a", tensor.view()}}, {}, Overwrite::refuse);
  write_safetensors(two, {{"b", tensor.view()}}, {}, Overwrite::refuse);
  const std::string index =
      put(folder_ / "model.safetensors.index.json",
          R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  for (const std::string& path : {index, folder_.path()}) {
    const nlohmann::json found = result(path);
    EXPECT_EQ(found["file"], index);
    EXPECT_EQ(found["tensors"], 2);
    EXPECT_EQ(found["bytes"], std::filesystem::file_size(one) + std::filesystem::file_size(two));
  }
  EXPECT_THAT(run_here({"inspect", index}).out, HasSubstr(index + ", of 2 files"));
}

// Its decoder has the layers of scBERT.
TEST_F(InspectTest, ScfoundationIsNotTakenForScbert) {
  const Tensor tensor = tensor_of({2, 3}, DType::f32, {1, 2, 3, 4, 5, 6});
  const std::string attention = "performer.net.layers.0.0.fn.fast_attention.projection_matrix";
  const std::string one = folder_ / "one", two = folder_ / "two";
  write_safetensors(one, {{attention, tensor.view()}}, {}, Overwrite::refuse);
  EXPECT_EQ(result(one)["model"], "scbert");
  write_safetensors(two,
                    {{"model.decoder." + attention, tensor.view()},
                     {"model.token_emb.mlp2.weight", tensor.view()}},
                    {}, Overwrite::refuse);
  EXPECT_EQ(result(two)["model"], "scfoundation");
}

TEST_F(InspectTest, GenesAreMatchedWithAModel) {
  const std::string file = cells();
  std::filesystem::create_directory(folder_ / "model");
  put(folder_ / "model/vocab.json", R"({"CD3D": 0, "LYZ": 1, "<pad>": 2})");
  const Outcome some = run_here({"inspect", file, "--model", folder_ / "model", "--json"});
  ASSERT_EQ(some.code, 0) << some.err;
  EXPECT_EQ(some.result()["genes"]["matched"], 2);
  EXPECT_EQ(some.result()["genes"]["total"], 300);
  ASSERT_EQ(some.json()["warnings"].size(), 1U);
  EXPECT_EQ(some.json()["warnings"][0]["code"], "W-GENE-LOW-MATCH");
  EXPECT_THAT(some.err, StartsWith("warning W-GENE-LOW-MATCH: "));

  put(folder_ / "model/vocab.json", R"({"nothing": 0})");
  const Outcome none = run_here({"inspect", file, "--model", folder_ / "model", "--json"});
  EXPECT_EQ(none.code, 0) << "that no gene matches is an answer";
  EXPECT_EQ(none.result()["genes"]["matched"], 0);
}

TEST_F(InspectTest, ARunIsSummarisedFromItsEvents) {
  std::filesystem::create_directory(folder_ / "run");
  put(folder_ / "run/metrics.jsonl",
      "{\"split\": \"train\", \"step\": 1, \"loss\": 2.0}\n"
      "{\"split\": \"validation\", \"epoch\": 0, \"loss\": 0.5}\n"
      "{\"split\": \"validation\", \"epoch\": 1, \"loss\": 0.75}\n"
      "{\"split\": \"train\", \"step\": 2, \"lo");
  const nlohmann::json found = result(folder_ / "run");
  EXPECT_EQ(found["kind"], "run");
  EXPECT_EQ(found["events"], 3) << "half a line belongs to a run that still goes on";
  EXPECT_EQ(found["last"]["validation"]["epoch"], 1);
  EXPECT_EQ(found["best"]["epoch"], 0);

  put(folder_ / "run/metrics.jsonl", "{\"split\": \"train\"\nnot json\n");
  EXPECT_EQ(run_here({"inspect", folder_ / "run"}).code, 10);
}

TEST_F(InspectTest, UnusableFilesEndWithTheirExitCodeAndTheirName) {
  struct Case {
    const char* name;
    std::string content;
    int code;
    const char* says;
  };
  const std::vector<Case> cases = {
      {"empty.h5ad", "", 10, "E-NOT-HDF5"},
      {"text.h5ad", "hello world\n", 10, "E-NOT-HDF5"},
      {"cut.h5ad", read_text(cells()).substr(0, 5000), 10, "error E-"},
      {"bad.pt", "\x80\x02garbage", 11, "error E-"},
      {"e.safetensors", std::string("\x09\0\0\0\0\0\0\0{not json", 17), 11, "error E-JSON"},
      {"notes.txt", "hello", 10, "E-INSPECT-KIND"},
  };
  for (const Case& c : cases) {
    const Outcome run = run_here({"inspect", put(folder_ / c.name, c.content)});
    EXPECT_EQ(run.code, c.code) << c.name << ": " << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_THAT(run.err, HasSubstr(c.name));
    EXPECT_THAT(run.err, HasSubstr(c.says));
  }
  std::filesystem::create_directory(folder_ / "nothing");
  EXPECT_EQ(run_here({"inspect", folder_ / "nothing"}).code, 11);
}

TEST_F(InspectTest, ScaledDataAreDescribedAndNotRefused) {
  SCGRAFT_NEEDS_SHARED("data/pbmc68k_reduced.h5ad");
  const nlohmann::json found = result(shared_path("data/pbmc68k_reduced.h5ad"));
  EXPECT_EQ(found["n_obs"], 700);
  EXPECT_EQ(found["n_vars"], 765);
  EXPECT_EQ(found["x"]["format"], "dense");
  EXPECT_EQ(found["values"], "scaled");
  EXPECT_EQ(found["expression"]["slot"], "raw/X");
  EXPECT_EQ(found["obs"]["bulk_labels"]["n_unique"], 10);
  EXPECT_EQ(found["obsm"], (nlohmann::json{"X_pca", "X_umap"}));
}

}  // namespace
}  // namespace scgraft
