// SPDX-License-Identifier: Apache-2.0
// Weights in several files and their index (io/shard_index.h, io/checkpoint.h).
#include <utility>

#include "io/checkpoint.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/io/torch_state.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kTorchIndex = "pytorch_model.bin.index.json";
constexpr const char* kOne = "model-00001-of-00002.safetensors";
constexpr const char* kTwo = "model-00002-of-00002.safetensors";

// Three tensors in two files.
class Shards : public ::testing::Test {
 protected:
  Shards() {
    write(kOne, {{"a", a_.view()}, {"c", c_.view()}});
    write(kTwo, {{"b", b_.view()}});
    index(cat("\"a\": \"", kOne, "\", \"b\": \"", kTwo, "\", \"c\": \"", kOne, "\""));
  }
  void write(const std::string& name, const std::vector<NamedTensor>& tensors) {
    write_safetensors(folder_ / name, tensors, {{"made_by", "test"}}, Overwrite::replace);
  }
  void index(const std::string& map) {
    put(folder_ / kIndex, R"({"metadata": {"total_size": 28}, "weight_map": {)" + map + "}}");
  }
  void expect_refused(const char* code, const std::string& part) {
    expect_model_error(code, part, [&] { open_checkpoint(folder_.path()); });
  }

  TemporaryFolder folder_;
  const Tensor a_ = tensor_of({2, 2}, DType::f32, {1, 2, 3, 4});
  const Tensor b_ = tensor_of({2}, DType::f32, {5, 6});
  const Tensor c_ = tensor_of({1}, DType::f32, {7});
};

TEST_F(Shards, AreOneCheckpoint) {
  write_safetensors(folder_ / "whole", {{"a", a_.view()}, {"b", b_.view()}, {"c", c_.view()}}, {},
                    Overwrite::refuse);
  const std::string want = open_checkpoint(folder_ / "whole").fingerprint();
  std::filesystem::remove(folder_ / "whole");
  const auto expect_all = [&](const Checkpoint& file) {
    ASSERT_EQ(file.tensors().size(), 3U);
    EXPECT_EQ(file.files().size(), 2U);
    EXPECT_EQ(file.section(), "");
    EXPECT_EQ(file.values().at("total_size"), 28);
    EXPECT_EQ(file.info("a").dims_text(), "[2, 2]");
    for (const auto& [name, tensor] :
         {std::pair("a", &a_), std::pair("b", &b_), std::pair("c", &c_)})
      expect_same_bits(file.tensor(name).view(), tensor->view());
    EXPECT_EQ(file.fingerprint(), want);
    expect_model_error("E-TENSOR-MISSING", "\"d\" among its 3", [&] { file.tensor("d"); });
  };
  EXPECT_EQ(open_checkpoint(folder_.path()).file(), folder_ / kIndex);
  expect_all(open_checkpoint(folder_.path()));
  expect_all(open_checkpoint(folder_ / kIndex));

  TemporaryFolder torch;
  put(torch / "pytorch_model-00001-of-00002.bin",
      torch_state(std::vector<NamedTensor>{{"a", a_.view()}, {"c", c_.view()}}));
  put(torch / "pytorch_model-00002-of-00002.bin",
      torch_state(std::vector<NamedTensor>{{"b", b_.view()}}));
  put(torch / kTorchIndex, R"({"weight_map": {"a": "pytorch_model-00001-of-00002.bin",
      "b": "pytorch_model-00002-of-00002.bin", "c": "pytorch_model-00001-of-00002.bin"},
      "metadata": {"total_size": 28}})");
  expect_all(open_checkpoint(torch.path()));
}

// As where a folder has the same weights in both formats.
TEST_F(Shards, ThoseOfSafetensorsComeFirstAndAWholeFileBeforeThem) {
  put(folder_ / kTorchIndex, "{}");
  put(folder_ / "pytorch_model-00001-of-00001.bin", "x");
  EXPECT_EQ(find_checkpoint(folder_.path()), folder_ / kIndex);
  put(folder_ / "model.safetensors", "x");
  EXPECT_EQ(find_checkpoint(folder_.path()), folder_ / "model.safetensors");

  TemporaryFolder torch;
  put(torch / kTorchIndex, "{}");
  EXPECT_EQ(find_checkpoint(torch.path()), torch / kTorchIndex);
  put(torch / "pytorch_model.bin", "x");
  EXPECT_EQ(find_checkpoint(torch.path()), torch / "pytorch_model.bin");
  std::filesystem::remove(torch / "pytorch_model.bin");
  put(torch / "best_model.pt", "x");
  expect_model_error("E-CHECKPOINT", cat("best_model.pt, ", kTorchIndex),
                     [&] { find_checkpoint(torch.path()); });
}

TEST_F(Shards, EveryOneMustBeThere) {
  std::filesystem::remove(folder_ / kTwo);
  expect_refused("E-FILE-MISSING", cat("names 2 files of weights, 1 missing: ", kTwo));
  std::filesystem::create_directory(folder_ / kTwo);
  expect_refused("E-FILE-TYPE", kTwo);
}

TEST_F(Shards, MustHoldWhatTheIndexSays) {
  write(kTwo, {{"x", b_.view()}});
  expect_refused("E-SHARDS", cat("puts the tensor \"b\" into ", kTwo, ", which does not have it"));
  write(kTwo, {{"b", b_.view()}, {"x", b_.view()}});
  expect_refused("E-SHARDS", cat("does not name the tensor \"x\" of ", kTwo));
  write(kTwo, {{"b", b_.view()}, {"c", c_.view()}});
  expect_refused("E-SHARDS", cat("the tensor \"c\" is in two of its files, ", kOne, " and ", kTwo));
  write(kOne, {{"a", a_.view()}});
  expect_refused("E-SHARDS", cat("puts the tensor \"c\" into ", kOne, ", it is in ", kTwo));
  put(folder_ / kTwo, "");
  expect_refused("E-CHECKPOINT", cat(kTwo, ": is empty"));
}

TEST_F(Shards, AnIndexNamesFilesOfItsFolderAlone) {
  std::filesystem::create_directory(folder_ / "below");
  std::filesystem::copy_file(folder_ / kTwo, folder_ / "below/x.safetensors");
  for (const std::string name :
       {"below/x.safetensors", "../x.safetensors", "/etc/passwd", "..", ".", "",
        "below\\\\x.safetensors", "model-00002-of-00002.safetensors\\u0000.txt"}) {
    SCOPED_TRACE(name);
    index(cat("\"a\": \"", kOne, "\", \"c\": \"", kOne, "\", \"b\": \"", name, "\""));
    expect_refused("E-SHARDS", "for \"b\", the plain name of a file in the same folder is needed");
  }
  index(cat("\"a\": \"", kIndex, "\""));  // itself
  expect_refused("E-ST-HEADER", kIndex);
}

TEST_F(Shards, AnIndexIsAnObjectOfNames) {
  const auto refused = [&](const std::string& text, const char* code, const std::string& part) {
    put(folder_ / kIndex, text);
    expect_refused(code, part);
  };
  refused("{\"weight_map\": {", "E-JSON", "not valid JSON");
  refused("[]", "E-SHARDS", "an object weight_map of tensors and their files is needed");
  refused("{\"metadata\": {}}", "E-SHARDS", "an object weight_map");
  refused("{\"weight_map\": []}", "E-SHARDS", "an object weight_map");
  refused("{\"weight_map\": {}}", "E-SHARDS", "names no tensor");
  refused("{\"weight_map\": {\"a\": 1}}", "E-SHARDS", "has 1 for \"a\", the name of a file");
  refused(cat("{\"weight_map\": {\"a\": \"", kOne, "\", \"a\": \"", kTwo, "\"}}"),
          "E-JSON-DUPLICATE", "\"a\" twice");
  index(cat("\"a\": \"", kOne, "\", \"b\": \"", kTwo, "\", \"c\": \"", kOne, "\""));
  expect_model_error("E-CHECKPOINT", "no section \"model\"",
                     [&] { open_checkpoint(folder_.path(), "model"); });
}

}  // namespace
}  // namespace scgraft
