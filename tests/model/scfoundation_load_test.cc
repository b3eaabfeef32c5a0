// SPDX-License-Identifier: Apache-2.0
#include "model/folder_kind.h"
#include "model/scfoundation/load.h"
#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/model/tiny_scfoundation.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using pickled::dict;
using pickled::integer;
using pickled::text;

std::string real(double value) {  // big-endian
  std::string bytes = le(value);
  return "G" + std::string(bytes.rbegin(), bytes.rend());
}

// What a branch is made of, to be spoilt before it is written.
struct Branch {
  ScfoundationConfig config = tiny_scfoundation_config();
  bool with_config = true;
  std::string model = "mae_autobin";
  std::string encoder_module = "transformer";
  double dropout = 0;
  std::map<std::string, Shape> tensors;  // by the network's names
  std::string storage = "FloatStorage";

  Branch() {
    ScfoundationNetwork(config, kTinyFeatures, [&](const std::string& name, const Shape& shape) {
      tensors.emplace(name, shape);
      return Tensor(shape, DType::f32);
    });
  }

  std::string sizes() const {
    const ScfoundationConfig& c = config;
    const std::string encoder = dict({{"hidden_dim", integer(static_cast<int32_t>(c.dim))},
                                      {"depth", integer(static_cast<int32_t>(c.layers))},
                                      {"heads", integer(static_cast<int32_t>(c.heads))},
                                      {"module_type", text(encoder_module)}});
    const std::string decoder =
        dict({{"hidden_dim", integer(static_cast<int32_t>(c.decoder_dim))},
              {"depth", integer(static_cast<int32_t>(c.decoder_layers))},
              {"heads", integer(static_cast<int32_t>(c.decoder_heads))},
              {"dim_head", integer(static_cast<int32_t>(c.decoder_head_dim))},
              {"module_type", text("performer")},
              {"ff_dropout", real(dropout)}});
    return dict({{"model", text(model)},
                 {"model_config", dict({{model, dict({{"bin_alpha", real(c.bin_alpha)},
                                                      {"pad_token_id", integer(103)},
                                                      {"mask_token_id", integer(102)},
                                                      {"encoder", encoder},
                                                      {"decoder", decoder}})}})},
                 {"dataset_config",
                  dict({{"rnaseq", dict({{"seq_len", integer(static_cast<int32_t>(c.positions))},
                                         {"bin_num", integer(static_cast<int32_t>(c.bins))}})}})}});
  }

  // The branch and its storages, numbered from `first` on. Elements count up from 0 by 1/64.
  std::string pickle(std::vector<std::pair<std::string, std::string>>& storages,
                     const std::string& prefix = "model.") const {
    std::vector<std::pair<std::string, std::string>> weights;
    for (const auto& [name, shape] : tensors) {
      const std::string key = std::to_string(storages.size());
      std::vector<int32_t> size, stride(shape.rank(), 1);
      for (int i = 0; i < shape.rank(); ++i) size.push_back(static_cast<int32_t>(shape[i]));
      for (int i = shape.rank() - 2; i >= 0; --i)
        stride[static_cast<size_t>(i)] =
            stride[static_cast<size_t>(i) + 1] * size[static_cast<size_t>(i) + 1];
      std::string bytes;
      for (int64_t i = 0; i < shape.numel(); ++i)
        bytes += storage == "HalfStorage" ? le(f16(static_cast<float>(i) / 64))
                                          : le(static_cast<float>(i) / 64);
      storages.emplace_back(key, bytes);
      weights.emplace_back(
          prefix + name,
          pickled::tensor(storage, key, static_cast<int32_t>(shape.numel()), 0, size, stride));
    }
    std::vector<std::pair<std::string, std::string>> parts = {{"state_dict", dict(weights)}};
    if (with_config) parts.emplace_back("config", sizes());
    return dict(parts);
  }
};

class ScfoundationLoad : public ::testing::Test {
 protected:
  void write(const std::vector<std::pair<std::string, Branch>>& branches,
             const std::string& prefix = "model.") {
    std::vector<std::pair<std::string, std::string>> storages, parts;
    for (const auto& [name, branch] : branches)
      parts.emplace_back(name, branch.pickle(storages, prefix));
    put(folder_ / "models.ckpt", torch_file(pickled::whole(dict(parts)), storages));
  }
  void expect_refused(const Branch& branch, const char* code, const std::string& part) {
    write({{"gene", branch}});
    expect_model_error(code, part, [&] { load_scfoundation(folder_.path()); });
  }

  TemporaryFolder folder_;
};

TEST_F(ScfoundationLoad, ReadsSizesAndWeightsOfABranch) {
  Branch other;
  other.tensors.erase("to_final.bias");
  write({{"cell", other}, {"gene", Branch()}});
  EXPECT_EQ(folder_kind(folder_.path()), "scfoundation");
  const ScfoundationModel model = load_scfoundation(folder_.path());
  EXPECT_EQ(model.branch, "gene");
  EXPECT_EQ(model.config.positions, 12);
  EXPECT_EQ(model.config.bins, 5);
  EXPECT_EQ(model.config.decoder_head_dim, 4);
  EXPECT_DOUBLE_EQ(model.config.bin_alpha, 0.7);
  const Parameter* places = model.network->parameters().find("pos_emb.weight");
  ASSERT_NE(places, nullptr);
  EXPECT_EQ(places->value.shape(), (Shape{13, 8}));
  EXPECT_EQ(places->value.as<float>()[70], 70.0f / 64);
  // The branch that was not asked for would not load.
  expect_model_error("E-TENSOR-MISSING", "to_final.bias",
                     [&] { load_scfoundation(folder_.path(), {.branch = "cell"}); });
}

TEST_F(ScfoundationLoad, NamesHaveAnythingUpToTheModel) {
  EXPECT_EQ(canonical_scfoundation_name("model.norm.weight"), "norm.weight");
  EXPECT_EQ(canonical_scfoundation_name("module.model.model.x"), "model.x");
  EXPECT_EQ(canonical_scfoundation_name("norm.weight"), "norm.weight");
  write({{"gene", Branch()}}, "net.model.");
  EXPECT_NE(load_scfoundation(folder_.path()).network, nullptr);
  write({{"gene", Branch()}}, "");
  EXPECT_NE(load_scfoundation(folder_.path()).network, nullptr);
}

TEST_F(ScfoundationLoad, ABranchThatIsNotThereIsAnsweredWithThoseThatAre) {
  write({{"cell", Branch()}, {"rde", Branch()}});
  expect_model_error("E-CHECKPOINT", "cell/state_dict, rde/state_dict",
                     [&] { load_scfoundation(folder_.path()); });
  EXPECT_EQ(load_scfoundation(folder_.path(), {.branch = "rde"}).branch, "rde");
}

TEST_F(ScfoundationLoad, WithoutAConfigInsideTheFileBesideItServes) {
  Branch bare;
  bare.with_config = false;
  write({{"gene", bare}});
  expect_model_error("E-FILE-MISSING", "config.json", [&] { load_scfoundation(folder_.path()); });
  put(folder_ / "config.json",
      R"({"model": "mae_autobin", "seq_len": 12, "bin_num": 5, "bin_alpha": 0.7,
          "encoder": {"hidden_dim": 8, "depth": 2, "heads": 2, "module_type": "transformer"},
          "decoder": {"hidden_dim": 6, "depth": 2, "heads": 2, "dim_head": 4}})");
  EXPECT_EQ(load_scfoundation(folder_.path()).config.dim, 8);
}

TEST_F(ScfoundationLoad, TensorsMustBeThoseOfTheNetwork) {
  Branch missing;
  missing.tensors.erase("encoder.norm.weight");
  expect_refused(missing, "E-TENSOR-MISSING", "encoder.norm.weight");
  Branch no_decoder;
  std::erase_if(no_decoder.tensors, [](const auto& t) { return t.first.starts_with("decoder"); });
  expect_refused(no_decoder, "E-TENSOR-MISSING", "decoder");
  Branch misshaped;
  misshaped.tensors["pos_emb.weight"] = {12, 8};
  expect_refused(misshaped, "E-TENSOR-SHAPE", "pos_emb.weight is [12, 8], [13, 8] was wanted");
  Branch other_config;
  other_config.config.bins = 6;
  expect_refused(other_config, "E-TENSOR-SHAPE", "token_emb");
  Branch more;
  more.tensors.emplace("encoder.extra.weight", Shape{2});
  expect_refused(more, "E-TENSOR-EXTRA", "model.encoder.extra.weight");
  EXPECT_NE(
      load_scfoundation(
          folder_.path(),
          {.claims = [](const std::string& name) { return name == "model.encoder.extra.weight"; }})
          .network,
      nullptr);
}

TEST_F(ScfoundationLoad, TheCounterOfRedrawsIsKnown) {
  Branch counter;
  counter.tensors.emplace("decoder.performer.calls_since_last_redraw", Shape{1});
  write({{"gene", counter}});
  EXPECT_EQ(load_scfoundation(folder_.path()).ignored,
            std::vector<std::string>{"model.decoder.performer.calls_since_last_redraw"});
}

TEST_F(ScfoundationLoad, AFreshClassifierStandsBesideTheEncoderAlone) {
  write({{"gene", Branch()}});
  const auto load = [&](uint64_t seed) {
    return load_scfoundation(folder_.path(),
                             {.new_head_classes = 3, .seed = seed, .decoder = false});
  };
  const ScfoundationModel model = load(7);
  EXPECT_FALSE(model.network->has_decoder());
  EXPECT_EQ(model.network->parameters().find("to_final.weight"), nullptr);
  EXPECT_EQ(model.fingerprint, load_scfoundation(folder_.path()).fingerprint);
  ASSERT_NE(model.network->classifier(), nullptr);
  EXPECT_EQ(model.network->classifier()->classes(), 3);
  const auto weight = [](const ScfoundationModel& m) {
    return m.network->parameters().find("fc1.0.weight")->value.view();
  };
  EXPECT_EQ(weight(model).shape(), (Shape{256, 32}));
  expect_same_bits(weight(load(7)), weight(model));
  EXPECT_NE(weight(load(8)).as<float>()[0], weight(model).as<float>()[0]);
  EXPECT_EQ(load_scfoundation(folder_.path()).network->classifier(), nullptr);
  Branch more;
  more.tensors.emplace("encoder.extra.weight", Shape{2});
  write({{"gene", more}});
  expect_model_error("E-TENSOR-EXTRA", "encoder.extra.weight", [&] { load(7); });
}

TEST_F(ScfoundationLoad, AClassifierOfTheFileIsRead) {
  Branch fine_tuned;
  fine_tuned.tensors.insert({{"fc1.0.weight", {256, 32}},
                             {"fc1.0.bias", {256}},
                             {"fc1.2.weight", {4, 256}},
                             {"fc1.2.bias", {4}}});
  write({{"gene", fine_tuned}});
  const ScfoundationModel model = load_scfoundation(folder_.path());
  ASSERT_NE(model.network->classifier(), nullptr);
  EXPECT_EQ(model.network->classifier()->classes(), 4);
  EXPECT_EQ(model.network->parameters().find("fc1.2.bias")->value.as<float>()[3], 3.0f / 64);
  const ScfoundationModel fresh = load_scfoundation(folder_.path(), {.new_head_classes = 3});
  EXPECT_EQ(fresh.network->classifier()->classes(), 3);
  EXPECT_EQ(fresh.ignored.size(), 4u);
  fine_tuned.tensors.erase("fc1.2.bias");
  expect_refused(fine_tuned, "E-TENSOR-MISSING", "fc1.2.bias");
}

TEST_F(ScfoundationLoad, HalfPrecisionIsConverted) {
  Branch half;
  half.storage = "HalfStorage";
  write({{"gene", half}});
  const ScfoundationModel model = load_scfoundation(folder_.path());
  const Parameter* places = model.network->parameters().find("pos_emb.weight");
  EXPECT_EQ(places->value.dtype(), DType::f32);
  EXPECT_EQ(places->value.as<float>()[70], 70.0f / 64);
}

TEST_F(ScfoundationLoad, WhatItDoesNotRunIsNamed) {
  Branch b;
  b.model = "performergau_resolution";
  expect_refused(b, "E-MODEL-CONFIG", "mae_autobin");
  b = {};
  b.encoder_module = "performer";
  expect_refused(b, "E-MODEL-CONFIG", "module_type");
  b = {};
  b.dropout = 0.1;
  expect_refused(b, "E-MODEL-CONFIG", "ff_dropout");
  b = {};
  b.config.heads = 3;
  expect_refused(b, "E-MODEL-CONFIG", "not a multiple of heads 3");
  b = {};
  b.config.positions = 2;
  expect_refused(b, "E-MODEL-CONFIG", "seq_len is 2");
}

}  // namespace
}  // namespace scgraft
