// SPDX-License-Identifier: Apache-2.0
// Small backbones and LoRA on real cells, with the commands a user types (benchmarks/real has the
// same with every baseline). One thread and a fixed seed, so that a score is one number; the bounds
// leave room for another CPU's rounding.
#include <gtest/gtest.h>

#include "tests/app/program.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

class RealDataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    data_ = shared_path("data");
    if (data_.empty()) GTEST_SKIP() << "SCGRAFT_TEST_DATA does not name a folder with data/";
  }
  nlohmann::json run(std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.insert(arguments.end(), {"--progress", "none", "--json"});
    if (arguments[0] != "eval") arguments.insert(arguments.end(), {"-t", "1"});
    const Outcome outcome = run_here(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.result();
  }
  std::string in(const std::string& name) const { return folder_ / name; }

  std::string data_;
  TemporaryFolder folder_;
};

const std::vector<std::string> kLora{"-s",
                                     "adapter.r=4",
                                     "-s",
                                     "adapter.target_modules=[q,k,v,out,ffn_in,ffn_out]",
                                     "--batch-size",
                                     "8",
                                     "--learning-rate",
                                     "1e-3"};

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A fifth of the cells is held back. The frozen model's nearest neighbours reach 0.85.
TEST_F(RealDataTest, LoraOnPbmc8k) {
  const std::string cells = data_ + "/pbmc8k_hvg200_counts.h5ad";
  run({"pretrain", "--data", cells, "--preset", "tiny", "-o", in("model")},
      {"--batch-size", "8", "--epochs", "8", "--learning-rate", "2e-3"});
  const nlohmann::json trained =
      run({"train", "--model", in("model"), "--data", cells, "--label-key", "cell_type", "-o",
           in("run"), "-s", "data.exclude_labels=[NA,HSC,Erythrocytes]", "-s",
           "data.test_fraction=0.2", "--epochs", "6"},
          kLora);
  const nlohmann::json& scores = trained.at("scores");
  const auto accuracy = [&](const char* who) {
    return scores.at(who).at("accuracy").get<double>();
  };
  EXPECT_GT(accuracy("model"), 0.87);
  EXPECT_GT(accuracy("model"), accuracy("zero_shot_knn") + 0.01);
  // Published on another split of the same file: 0.894 and 0.882.
  EXPECT_NEAR(accuracy("logistic_regression"), 0.894, 0.02);
  EXPECT_NEAR(accuracy("knn"), 0.882, 0.02);
}

// Everything is learned on control cells, the backbone too; the judges are stimulated cells.
TEST_F(RealDataTest, LoraFromKangControlToStimulated) {
  const std::string cells = data_ + "/kang_ifnb_valid_current.h5ad";
  const std::vector<std::string> control{
      "--subset", "condition=control", "-s", "data.hvg=cell_ranger", "-s", "data.hvg_count=1000"};
  run({"pretrain", "--data", cells, "--preset", "tiny", "-o", in("model"), "--batch-size", "8",
       "--epochs", "30", "--learning-rate", "2e-3"},
      control);
  run({"train", "--model", in("model"), "--data", cells, "--label-key", "cell_type", "-o",
       in("run"), "--epochs", "15"},
      control + kLora);
  run({"annotate", cells, "--adapter", in("run/adapter"), "-o", in("out.h5ad")},
      {"--key-added", "k"});
  const nlohmann::json result = run({"eval", in("out.h5ad"), "--key", "k", "--label-key",
                                     "cell_type", "--subset", "condition=stimulated"},
                                    {});
  EXPECT_EQ(result.at("cells"), 1039);
  const double lora = result.at("accuracy").get<double>();
  const auto beside = [&](const char* who) {
    return result.at("beside").at(who).at("accuracy").get<double>();
  };
  // These see the 1,000 variable genes; tests/training/baselines_test.cc holds them to the
  // published figures on all genes.
  EXPECT_GT(lora, beside("logistic_regression") + 0.03);
  EXPECT_GT(lora, beside("knn") + 0.03);
}

}  // namespace
}  // namespace scgraft
