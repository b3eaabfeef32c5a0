// SPDX-License-Identifier: Apache-2.0
#include "model/preparation.h"

#include <functional>

#include "runtime/error.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

Preparation changed() {
  return {.model = "scgpt",
          .layer = "counts",
          .gene_key = "feature_name",
          .target_sum = 5e3,
          .hvg = "seurat_v3",
          .hvg_count = 1200,
          .n_bins = 11,
          .max_length = 77,
          .seed = 1ull << 63,
          .genes = {"CD3D", "LYZ"}};
}

void expect_refused(const std::string& part, const std::function<void(nlohmann::json&)>& edit) {
  nlohmann::json json = changed().to_json();
  edit(json);
  try {
    Preparation::from_json(json, "preprocess.json");
    ADD_FAILURE() << "accepted: " << json.dump();
  } catch (const ModelError& error) {
    EXPECT_EQ(error.code(), "E-PREPARE");
    EXPECT_THAT(error.what(), HasSubstr(part));
  }
}

TEST(PreparationTest, SurvivesItsFile) {
  const nlohmann::json json = nlohmann::json::parse(changed().to_json().dump());
  EXPECT_EQ(Preparation::from_json(json, "preprocess.json").to_json(), changed().to_json());
  EXPECT_EQ(Preparation::from_json(Preparation().to_json(), "p").to_json(),
            Preparation().to_json());
}

// As it was written before there were other models.
TEST(PreparationTest, VersionOneIsOfScgpt) {
  nlohmann::json json = changed().to_json();
  json["version"] = 1;
  json.erase("model");
  EXPECT_EQ(Preparation::from_json(json, "preprocess.json").to_json(), changed().to_json());
}

TEST(PreparationTest, AFileHoldsTheFieldsOfItsModel) {
  Preparation ranks;
  ranks.model = "geneformer";
  ranks.max_length = 99;
  ranks.dictionaries = "/models/v2";
  ranks.dictionary_fingerprint = "ab";
  const nlohmann::json json = ranks.to_json();
  EXPECT_FALSE(json.contains("n_bins"));
  const Preparation read = Preparation::from_json(json, "p");
  EXPECT_EQ(read.max_length, 99);
  EXPECT_EQ(read.dictionaries, "/models/v2");
  EXPECT_EQ(read.dictionary_fingerprint, "ab");
  EXPECT_EQ(read.to_json(), json);
  Preparation entries;
  entries.model = "scfoundation";
  EXPECT_EQ(entries.target_depth, "t4");
  entries.target_depth = "f2";
  nlohmann::json depth = entries.to_json();
  EXPECT_FALSE(depth.contains("max_length"));
  EXPECT_EQ(Preparation::from_json(depth, "p").target_depth, "f2");
  expect_refused("a target depth is", [&](auto& j) {
    j = depth;
    j["target_depth"] = "x4";
  });
  expect_refused("\"dictionaries\" is missing", [](auto& j) { j["model"] = "scbert"; });
  expect_refused("\"model\" is \"bert\"", [](auto& j) { j["model"] = "bert"; });
}

TEST(PreparationTest, OnlyCellsOfScfoundationAskForADepth) {
  Preparation p;
  p.ask_for_depth("");
  EXPECT_EQ(p.target_depth, "t4");
  expect_error("cells of scgpt ask for no sequencing depth", [&] { p.ask_for_depth("t4"); });
  p.model = "scfoundation";
  for (const char* depth : {"f2", "a0.5", "bulk"}) {
    p.ask_for_depth(depth);
    EXPECT_EQ(Preparation::from_json(p.to_json(), "p").target_depth, depth);
  }
  expect_error("a target depth is", [&] { p.ask_for_depth("4"); });
  EXPECT_EQ(p.target_depth, "bulk");
}

TEST(PreparationTest, WhatIsMissingUnknownOrOfAnotherTypeIsRefused) {
  expect_refused("\"n_bins\" is missing", [](auto& json) { json.erase("n_bins"); });
  expect_refused("\"colour\" is not known", [](auto& json) { json["colour"] = 1; });
  expect_refused("\"seed\" has a value of the wrong type", [](auto& json) { json["seed"] = -1; });
  expect_refused("\"n_bins\" has a value of the wrong type",
                 [](auto& json) { json["n_bins"] = 51.5; });
  expect_refused("\"genes\" has a value of the wrong type",
                 [](auto& json) { json["genes"][1] = 3; });
  expect_refused("version 1 to 2, got", [](auto& json) { json["version"] = 3; });
  expect_refused("n_bins must be 3 to 65536", [](auto& json) { json["n_bins"] = 2; });
  expect_refused("JSON object", [](auto& json) { json = nlohmann::json::array(); });
}

TEST(PreparationTest, SettingsThatMakeNoSenseAreRefused) {
  const auto expect_config = [](const std::string& part, const Preparation& p) {
    try {
      p.validate();
      ADD_FAILURE() << part;
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.code(), "E-PREPARE");
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  };
  Preparation().validate();
  expect_config("hvg_count must be at least 1", {.hvg = "seurat_v3"});
  expect_config("not \"seurat\"", {.hvg = "seurat"});
  expect_config("target_sum", {.target_sum = 0});
  expect_config("max_length", {.max_length = 1});
  expect_config("layer", {.layer = ""});
  expect_config("hvg must be none for scbert",
                {.model = "scbert", .hvg = "seurat_v3", .hvg_count = 9});
}

}  // namespace
}  // namespace scgraft
