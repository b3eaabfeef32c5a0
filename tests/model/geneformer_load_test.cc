// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/load.h"
#include "tests/model/loaded_folder.h"

namespace scgraft {
namespace {

constexpr const char* kWords = "bert.embeddings.word_embeddings.weight";
constexpr const char* kPlaces = "bert.embeddings.position_embeddings.weight";

LoadedFolder tiny_folder() {
  GeneformerConfig config;
  config.vocab = 20;
  config.dim = 8;
  config.heads = 2;
  config.layers = 2;
  config.ffn = 12;
  config.positions = 6;
  config.dropout = config.attention_dropout = 0;
  GeneformerNetwork network(config, {.words = true}, geneformer_initialiser(3));
  LoadedFolder folder{config.to_json(), {}};
  folder.take(network);
  return folder;
}

class GeneformerLoad : public ::testing::Test {
 protected:
  GeneformerModel load(const LoadedFolder& from) {
    from.write(folder_.path());
    return load_geneformer(folder_.path());
  }
  void expect_refused(const LoadedFolder& from, const char* code, const std::string& part) {
    expect_model_error(code, part, [&] { load(from); });
  }

  TemporaryFolder folder_;
};

TEST_F(GeneformerLoad, HalfPrecisionIsWidened) {
  LoadedFolder half = tiny_folder();
  const std::string weight = "bert.encoder.layer.1.attention.self.query.weight";
  half.retype(kWords, DType::bf16);
  half.retype(weight, DType::f16);
  const GeneformerModel model = load(half);
  for (const std::string& name : {std::string(kWords), weight}) {
    const Parameter* p = model.network->parameters().find(name);
    ASSERT_NE(p, nullptr) << name;
    EXPECT_EQ(p->value.dtype(), DType::f32) << name;
    EXPECT_EQ(values_of(p->value.view()), values_of(half.tensors.at(name).view())) << name;
  }
}

TEST_F(GeneformerLoad, TensorsMustBeThoseOfTheNetwork) {
  LoadedFolder missing = tiny_folder();
  missing.tensors.erase("bert.encoder.layer.0.output.dense.bias");
  expect_refused(missing, "E-TENSOR-MISSING", "bert.encoder.layer.0.output.dense.bias");
  LoadedFolder misshaped = tiny_folder();
  misshaped.config["max_position_embeddings"] = 7;
  expect_refused(misshaped, "E-TENSOR-SHAPE", cat(kPlaces, " is [6, 8], [7, 8] was wanted"));
  LoadedFolder of_rank_one = tiny_folder();
  of_rank_one.tensors[kWords] = Tensor({160}, DType::f32);
  expect_refused(of_rank_one, "E-TENSOR-SHAPE", cat(kWords, " is [160], [20, 8] was wanted"));
  LoadedFolder more = tiny_folder();
  more.tensors["bert.encoder.layer.0.gate.weight"] = Tensor({2}, DType::f32);
  expect_refused(more, "E-TENSOR-EXTRA", "bert.encoder.layer.0.gate.weight");
}

TEST_F(GeneformerLoad, WeightsOfAnotherBackboneAreRefused) {
  LoadedFolder other = tiny_folder();
  other.tensors.clear();
  other.tensors["performer.net.layers.0.0.fn.to_q.weight"] = Tensor({8, 8}, DType::f32);
  expect_refused(other, "E-TENSOR-MISSING", kWords);
}

TEST_F(GeneformerLoad, ShardsAreTheModelToTheBit) {
  const LoadedFolder whole = tiny_folder();
  const GeneformerModel want = load(whole);
  for (const bool torch : {false, true}) {
    SCOPED_TRACE(torch);
    TemporaryFolder folder;
    whole.write_shards(folder.path(), 3, torch);
    const GeneformerModel got = load_geneformer(folder.path());
    EXPECT_EQ(got.fingerprint, want.fingerprint);
    const auto ours = got.network->parameters().all(), theirs = want.network->parameters().all();
    ASSERT_EQ(ours.size(), theirs.size());
    for (size_t i = 0; i < ours.size(); ++i) {
      EXPECT_EQ(ours[i]->name, theirs[i]->name);
      expect_same_bits(ours[i]->value.view(), theirs[i]->value.view());
    }
    const Tensor output = encode_length(*got.network, 5);
    EXPECT_NE(values_of(output.view())[0], 0);
    expect_same_bits(output.view(), encode_length(*want.network, 5).view());
    std::filesystem::remove(folder / LoadedFolder::shard_name(1, 3, torch));
    expect_model_error("E-FILE-MISSING", LoadedFolder::shard_name(1, 3, torch),
                       [&] { load_geneformer(folder.path()); });
  }
}

// What is not in the model is found in shards as in one file.
TEST_F(GeneformerLoad, ShardsAreCheckedAsOneFile) {
  LoadedFolder more = tiny_folder();
  more.tensors["bert.encoder.layer.0.gate.weight"] = Tensor({2}, DType::f32);
  more.write_shards(folder_.path(), 2);
  expect_model_error("E-TENSOR-EXTRA", "bert.encoder.layer.0.gate.weight",
                     [&] { load_geneformer(folder_.path()); });
}

TEST_F(GeneformerLoad, WhatItDoesNotRunIsNamed) {
  for (const auto& [key, value] :
       std::map<std::string, std::string>{{"hidden_act", "gelu"},
                                          {"model_type", "roberta"},
                                          {"position_embedding_type", "relative_key"}}) {
    LoadedFolder other = tiny_folder();
    other.config[key] = value;
    expect_refused(other, "E-MODEL-CONFIG", key);
  }
  LoadedFolder odd = tiny_folder();
  odd.config["num_attention_heads"] = 3;
  expect_refused(odd, "E-MODEL-CONFIG", "not a multiple of num_attention_heads 3");
}

TEST_F(GeneformerLoad, ACellIsAtMostAsLongAsThereArePositions) {
  const GeneformerModel model = load(tiny_folder());
  encode_length(*model.network, 6);
  expect_file_error(ExitCode::data, "E-DATA", "this model has 6 positions",
                    [&] { encode_length(*model.network, 7); });
}

}  // namespace
}  // namespace scgraft
