// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "app/config/load.h"
#include "tests/app/program.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const fs::path kFolder = fs::path(SCGRAFT_SOURCE_DIR) / "examples";

RunConfig load(const std::string& name) { return load_run_config(kFolder / name, {}, {}); }

std::vector<fs::path> examples() {
  std::vector<fs::path> out;
  for (const fs::directory_entry& entry : fs::directory_iterator(kFolder))
    if (entry.path().extension() == ".yaml") out.push_back(entry.path());
  return out;
}

TEST(Examples, EachLoadsAndNamesItsFiles) {
  const std::vector<fs::path> all = examples();
  EXPECT_GE(all.size(), 6U);
  for (const fs::path& path : all) {
    SCOPED_TRACE(path.string());
    RunConfig config;
    ASSERT_NO_THROW(config = load_run_config(path, {}, {}));
    EXPECT_FALSE(config.data.train.empty());
    EXPECT_FALSE(config.output_dir.empty());
    EXPECT_GT(config.data.val_fraction, 0) << "without validation no epoch can be chosen";
    if (config.task == "pretrain") continue;
    EXPECT_FALSE(config.base_model.empty());
    EXPECT_FALSE(config.data.label_key.empty());
    EXPECT_GT(config.data.test_fraction, 0) << "the cells that chose the epoch cannot judge it";
  }
}

TEST(Examples, EachNamesItsCommandAndStandsInThePage) {
  const std::string page = read_text((kFolder / "README.md").string());
  for (const fs::path& path : examples()) {
    const std::string name = path.filename().string();
    const std::string verb = load(name).task == "pretrain" ? "pretrain" : "train";
    EXPECT_THAT(read_text(path.string()), HasSubstr("scgraft " + verb + " -c " + name));
    EXPECT_THAT(page, HasSubstr("(" + name + ")"));
  }
}

TEST(Examples, EachShowsWhatItIsNamedFor) {
  const RunConfig lora = load("annotate-lora.yaml");
  EXPECT_EQ(lora.adapter.type, "lora");
  EXPECT_EQ(lora.train.trainable, "adapter");
  EXPECT_EQ(load("linear-probe.yaml").train.trainable, "head");
  const RunConfig full = load("full-fine-tuning.yaml");
  EXPECT_EQ(full.train.trainable, "all");
  EXPECT_LT(full.train.learning_rate, lora.train.learning_rate);
  EXPECT_EQ(load("donor-split.yaml").data.split_by, "donor_id");
  const RunConfig imbalanced = load("imbalanced-classes.yaml");
  EXPECT_EQ(imbalanced.train.class_weights, "balanced");
  EXPECT_THAT(imbalanced.data.exclude_labels, ElementsAre("Doublet", "Unknown"));
  EXPECT_EQ(load("small-backbone.yaml").task, "pretrain");
}

}  // namespace
}  // namespace scgraft
