// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "model/scbert/load.h"
#include "tests/model/loaded_folder.h"

namespace scgraft {
namespace {

constexpr const char* kBins = "token_emb.weight";
constexpr const char* kPlaces = "pos_emb.emb.weight";

LoadedFolder tiny_folder() {
  ScbertConfig c;
  c.dim = 8;
  c.layers = 2;
  c.heads = 2;
  c.head_dim = 4;
  c.positions = 6;
  c.ffn_factor = 2;
  const ParameterSource values = [](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, DType::f32), {}};
    initialise_uniform(p, 1.0, 3);
    return std::move(p.value);
  };
  ScbertNetwork network(c, 5, {.bins = true}, values);
  LoadedFolder folder{{{"num_tokens", c.tokens},
                       {"dim", c.dim},
                       {"depth", c.layers},
                       {"heads", c.heads},
                       {"dim_head", c.head_dim},
                       {"max_seq_len", c.positions},
                       {"ff_mult", c.ffn_factor}},
                      {}};
  folder.take(network);
  return folder;
}

class ScbertLoad : public ::testing::Test {
 protected:
  ScbertModel load(const LoadedFolder& from) {
    from.write(folder_.path());
    return load_scbert(folder_.path());
  }
  void expect_refused(const LoadedFolder& from, const char* code, const std::string& part) {
    expect_model_error(code, part, [&] { load(from); });
  }

  TemporaryFolder folder_;
};

TEST_F(ScbertLoad, HalfPrecisionIsWidenedAndPositionsInDoubleAreRounded) {
  LoadedFolder mixed = tiny_folder();
  const std::string weight = "performer.net.layers.1.0.fn.to_v.weight";
  mixed.retype(kBins, DType::f16);
  mixed.retype(weight, DType::bf16);
  const Tensor& places = mixed.tensors.at(kPlaces);
  std::vector<double> exact = values_of(places.view());
  exact[0] = 0.1;  // no f32
  mixed.tensors[kPlaces] = tensor_of(places.shape(), DType::f64, exact);
  const ScbertModel model = load(mixed);
  for (const std::string& name : {std::string(kBins), weight, std::string(kPlaces)}) {
    const Parameter* p = model.network->parameters().find(name);
    ASSERT_NE(p, nullptr) << name;
    EXPECT_EQ(p->value.dtype(), DType::f32) << name;
    std::vector<double> want = values_of(mixed.tensors.at(name).view());
    for (double& x : want) x = static_cast<double>(static_cast<float>(x));
    EXPECT_EQ(values_of(p->value.view()), want) << name;
  }
}

TEST_F(ScbertLoad, TensorsMustBeThoseOfTheNetwork) {
  LoadedFolder missing = tiny_folder();
  missing.tensors.erase("performer.net.layers.0.1.fn.fn.w2.bias");
  expect_refused(missing, "E-TENSOR-MISSING", "performer.net.layers.0.1.fn.fn.w2.bias");
  LoadedFolder longer = tiny_folder();
  longer.config["max_seq_len"] = 7;
  expect_refused(longer, "E-TENSOR-SHAPE", cat(kPlaces, " is [6, 8], [7, 8] was wanted"));
  LoadedFolder of_rank_one = tiny_folder();
  of_rank_one.tensors[kBins] = Tensor({56}, DType::f32);
  expect_refused(of_rank_one, "E-TENSOR-SHAPE", cat(kBins, " is [56], [7, 8] was wanted"));
  // Features of one layer are not those of another.
  LoadedFolder features = tiny_folder();
  const std::string projection = "performer.net.layers.1.0.fn.fast_attention.projection_matrix";
  features.tensors[projection] = Tensor({6, 4}, DType::f32);
  expect_refused(features, "E-TENSOR-SHAPE", projection + " is [6, 4], [5, 4] was wanted");
  LoadedFolder more = tiny_folder();
  more.tensors["performer.net.layers.0.gate.weight"] = Tensor({2}, DType::f32);
  expect_refused(more, "E-TENSOR-EXTRA", "performer.net.layers.0.gate.weight");
}

TEST_F(ScbertLoad, WeightsOfAnotherBackboneAreRefused) {
  LoadedFolder other = tiny_folder();
  other.tensors.clear();
  other.tensors["bert.embeddings.word_embeddings.weight"] = Tensor({20, 8}, DType::f32);
  expect_refused(other, "E-TENSOR-MISSING", "projection_matrix");
}

TEST_F(ScbertLoad, ShardsAreTheModelAndOneOfThemIsNone) {
  const std::string whole = load(tiny_folder()).fingerprint;
  TemporaryFolder shards;
  tiny_folder().write_shards(shards.path(), 2, true);
  EXPECT_EQ(load_scbert(shards.path()).fingerprint, whole);
  std::filesystem::rename(folder_ / "model.safetensors",
                          folder_ / "pytorch_model-00002-of-00002.safetensors");
  expect_model_error("E-CHECKPOINT", "in several files", [&] { load_scbert(folder_.path()); });
}

// What a cell of all positions becomes.
std::vector<double> encoded(ScbertNetwork& network) {
  const std::vector<int32_t> bins = {1, 0, 5, 3, 2, 4};
  const std::vector<float> places = {0, 1, 2, 3, 4, 5};
  Context ctx;
  TokenBatch batch;
  batch.assign(ctx, std::vector<CellView>{{.cell = 0, .genes = bins, .values = places}});
  Tensor out({6, network.dim()}, DType::f32);
  network.encode(ctx, batch, {}, out.view());
  return values_of(out.view());
}

TEST_F(ScbertLoad, GeneralizedAttentionHasFeaturesOfRelu) {
  LoadedFolder folder = tiny_folder();
  const ScbertModel softmax = load(folder);
  EXPECT_FALSE(softmax.config.generalized);
  folder.config["generalized_attention"] = true;
  const ScbertModel relu = load(folder);
  EXPECT_TRUE(relu.config.generalized);
  const std::vector<double> got = encoded(*relu.network), other = encoded(*softmax.network);
  double apart = 0;
  for (size_t i = 0; i < got.size(); ++i) apart = std::max(apart, std::abs(got[i] - other[i]));
  EXPECT_GT(apart, 1e-3);
  // It stays what it is through a folder that it was saved to.
  TemporaryFolder copy;
  save_scbert(copy.path(), relu);
  EXPECT_EQ(encoded(*load_scbert(copy.path()).network), got);
}

TEST_F(ScbertLoad, WhatItDoesNotRunIsNamed) {
  LoadedFolder dense = tiny_folder();
  dense.config["no_projection"] = true;
  expect_refused(dense, "E-MODEL-CONFIG", "no_projection is true");
  LoadedFolder unclear = tiny_folder();
  unclear.config["generalized_attention"] = 1;
  expect_refused(unclear, "E-MODEL-CONFIG", "\"generalized_attention\" must be true or false");
  LoadedFolder local = tiny_folder();
  local.config["local_attn_heads"] = 2;
  expect_refused(local, "E-MODEL-CONFIG", "local_attn_heads is 2");
  LoadedFolder plain = tiny_folder();
  plain.config["generalized_attention"] = plain.config["no_projection"] = false;
  EXPECT_NO_THROW(load(plain));
}

TEST_F(ScbertLoad, ACellIsAtMostAsLongAsThereArePositions) {
  const ScbertModel model = load(tiny_folder());
  encode_length(*model.network, 6);
  expect_file_error(ExitCode::data, "E-DATA", "this model has 6 positions",
                    [&] { encode_length(*model.network, 7); });
}

}  // namespace
}  // namespace scgraft
