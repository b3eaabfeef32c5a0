// SPDX-License-Identifier: Apache-2.0
// Whole runs of the program on a CUDA device beside the same runs on the CPU: pretrain, train,
// annotate, embed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "io/h5ad.h"
#include "runtime/device.h"
#include "runtime/gpu/libraries.h"
#include "tests/app/program.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

class VerbsOnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine or build has no CUDA device";
    ok({"simulate", "-o", in("study"), "--cells", "80", "--shifted-cells", "24", "--genes", "300",
        "--types", "3", "--signal", "2", "--depth", "300"});
    ok({"pretrain", "--data", in("study/atlas.h5ad"), "--preset", "tiny", "-o", in("model"),
        "--max-genes", "24", "-s", "train.max_steps=3", "--device", "cpu"});
  }
  std::string in(const std::string& name) const { return folder_ / name; }
  static Outcome ok(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--progress", "none", "-t", "1"});
    const Outcome run = run_here(arguments);
    EXPECT_EQ(run.code, 0) << arguments[0] << ": " << run.err;
    return run;
  }
  // Trains an adapter of four steps, all in one epoch; returns the losses.
  std::vector<double> train(const std::string& run, const std::string& device,
                            const std::vector<std::string>& more = {},
                            const std::string& precision = "fp32") {
    std::vector<std::string> arguments = {"train",
                                          "--model",
                                          in("model"),
                                          "--data",
                                          in("study/atlas.h5ad"),
                                          "--label-key",
                                          "cell_type",
                                          "-o",
                                          in(run),
                                          "--device",
                                          device,
                                          "--precision",
                                          precision,
                                          "--batch-size",
                                          "6",
                                          "-s",
                                          "train.max_steps=4",
                                          "-s",
                                          "adapter.r=2",
                                          "-s",
                                          "data.max_genes=24",
                                          "-s",
                                          "train.learning_rate=1e-3"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    ok(arguments);
    return losses(run);
  }
  std::vector<double> losses(const std::string& run) const {
    std::vector<double> found;
    std::istringstream lines(read_text(in(run + "/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json event = nlohmann::json::parse(line);
      if (event.at("split") == "train") found.push_back(event.at("loss"));
    }
    return found;
  }
  Outcome annotate(const std::string& run, const std::string& output, const std::string& device) {
    return ok({"annotate", in("study/shifted.h5ad"), "--adapter", in(run + "/adapter"), "-o",
               in(output), "--device", device, "--precision", "fp32", "--json"});
  }

  TemporaryFolder folder_;
};

void expect_near(const std::vector<double>& got, const std::vector<double>& want,
                 double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(got[i], want[i], tolerance * std::max(1.0, std::abs(want[i]))) << i;
}

TEST_F(VerbsOnDevice, TrainingFollowsTheLossCurveOfTheCpu) {
  const std::vector<double> cpu = train("cpu", "cpu"), cuda = train("cuda", "cuda");
  ASSERT_EQ(cpu.size(), 4U);
  expect_near(cuda, cpu, 1e-4);
  EXPECT_NE(cpu.front(), cpu.back());
  expect_near(train("all_cuda", "cuda", {"--trainable", "all"}),
              train("all_cpu", "cpu", {"--trainable", "all"}), 1e-3);
}

TEST_F(VerbsOnDevice, TwoRunsGiveTheSameFile) {
  train("one", "cuda");
  train("two", "cuda");
  const std::string weights = "/adapter/adapter_model.safetensors";
  EXPECT_EQ(read_text(in("one" + weights)), read_text(in("two" + weights)));
}

TEST_F(VerbsOnDevice, AnnotatesAndEmbedsAsTheCpu) {
  train("run", "cuda");
  EXPECT_EQ(annotate("run", "cuda.h5ad", "cuda").result()["cells"], 24);
  annotate("run", "cpu.h5ad", "cpu");
  const auto confidence = [&](const std::string& file) {
    return std::get<Reals>(H5ad::open(in(file)).obs().read("run_conf").values);
  };
  expect_near(confidence("cuda.h5ad"), confidence("cpu.h5ad"), 1e-4);

  std::vector<std::vector<double>> embedded;
  for (const std::string device : {"cpu", "cuda"}) {
    const std::string file = in(device + "_embedded.h5ad");
    ok({"embed", in("study/shifted.h5ad"), "--adapter", in("run/adapter"), "-o", file, "--device",
        device, "--precision", "fp32"});
    const H5ad::Embedding found = H5ad::open(file).obsm("X_scGPT");
    embedded.emplace_back(found.values.begin(), found.values.end());
  }
  expect_near(embedded[1], embedded[0], 1e-4);
}

TEST_F(VerbsOnDevice, SixteenBitsStayNearF32) {
  const std::vector<double> f32 = train("f32", "cuda");
  const std::vector<double> bf16 = train("bf16", "cuda", {}, "auto");
  EXPECT_NE(bf16, f32);
  expect_near(bf16, f32, 2e-2);
  expect_near(train("f16", "cuda", {}, "fp16"), f32, 4e-3);
}

TEST_F(VerbsOnDevice, ProductsOfTheLibraryLeadToTheSameLosses) {
  if (!test_library().empty()) setenv("SCGRAFT_CUBLASLT", test_library().c_str(), 1);
  if constexpr (kBuiltWithCuda) {
    if (!gpu::cublaslt_library()) GTEST_SKIP() << gpu::cublaslt_library().problem;
  }
  const std::vector<std::string> by_library = {"-s", "train.linear_backend=cublaslt"};
  const std::vector<double> own = train("own", "cuda");
  expect_near(train("library", "cuda", by_library), own, 1e-4);
  // bf16 or f16, and every weight trained: rounded once more where LoRA terms are added.
  expect_near(train("library_16", "cuda", by_library, "auto"), own, 2e-2);
  std::vector<std::string> all = by_library;
  all.insert(all.end(), {"--trainable", "all"});
  expect_near(train("library_all", "cuda", all), train("own_all", "cuda", {"--trainable", "all"}),
              1e-3);
  train("library_again", "cuda", by_library);
  const std::string weights = "/adapter/adapter_model.safetensors";
  EXPECT_EQ(read_text(in("library" + weights)), read_text(in("library_again" + weights)));
  EXPECT_NE(read_text(in("library" + weights)), read_text(in("own" + weights)));
}

// A process of its own: a library is looked for once.
TEST_F(VerbsOnDevice, AMissingLibraryEndsARunBeforeAnythingIsWritten) {
  const std::string arguments = cat("train --model '", in("model"), "' --data '",
                                    in("study/atlas.h5ad"), "' --label-key cell_type -o '",
                                    in("none"), "' -s train.linear_backend=cublaslt --device ");
  const Outcome missing = run_program(arguments + "cuda", "SCGRAFT_CUBLASLT=/none/libcublasLt.so");
  EXPECT_EQ(missing.code, 13);
  EXPECT_NE(missing.err.find("E-LIBRARY"), std::string::npos) << missing.err;
  EXPECT_NE(missing.err.find("cuBLASLt was not found at SCGRAFT_CUBLASLT"), std::string::npos)
      << missing.err;
  EXPECT_NE(missing.err.find("-s train.linear_backend=own"), std::string::npos) << missing.err;
  const Outcome on_cpu = run_program(arguments + "cpu");
  EXPECT_EQ(on_cpu.code, 13);
  EXPECT_NE(on_cpu.err.find("cuBLASLt multiplies on CUDA devices, not on cpu"), std::string::npos)
      << on_cpu.err;
  EXPECT_FALSE(std::filesystem::exists(in("none")));
}

TEST_F(VerbsOnDevice, PretrainingFollowsTheLossCurveOfTheCpu) {
  for (const std::string device : {"cpu", "cuda"})
    ok({"pretrain", "--data", in("study/atlas.h5ad"), "--preset", "tiny", "-o", in("pre_" + device),
        "--max-genes", "24", "-s", "train.max_steps=3", "--batch-size", "6", "--device", device,
        "--precision", "fp32"});
  expect_near(losses("pre_cuda"), losses("pre_cpu"), 1e-4);
}

}  // namespace
}  // namespace scgraft
