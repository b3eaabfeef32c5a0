// SPDX-License-Identifier: Apache-2.0
// Adapters out of the whole models that scPEFT saves (adapters/scpeft_import.h).
#include "adapters/scpeft_import.h"

#include <filesystem>

#include "adapters/scpeft.h"
#include "adapters/store.h"
#include "io/json.h"
#include "model/scgpt/load.h"
#include "tests/adapters/tiny_backbone.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using Tensors = std::map<std::string, Tensor>;

std::string golden(const std::string& name) { return shared_path("golden/" + name); }

Tensors tensors_of(const std::string& path) {
  const Checkpoint file = open_checkpoint(path);
  Tensors all;
  for (const TensorInfo& info : file.tensors()) all[info.name] = file.tensor(info.name).clone();
  return all;
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

class ScpeftImportTest : public ::testing::Test {
 protected:
  // The backbone of a golden case, without the adapter, its head as in the file or fresh.
  ScgptModel base(const std::string& name, int64_t classes = 0) {
    return load_scgpt(golden(name), {.new_head_classes = classes, .claims = is_scpeft_tensor});
  }
  // The tensors as a file.
  std::string file(const Tensors& tensors) {
    std::vector<NamedTensor> named;
    for (const auto& [name, tensor] : tensors) named.push_back({name, tensor.view()});
    const std::string path = folder_ / cat(++files_, ".safetensors");
    write_safetensors(path, named, {}, Overwrite::refuse);
    return path;
  }
  static ScpeftImport import(const std::string& path, ScgptModel& into,
                             const nlohmann::json& config = {}) {
    return import_scpeft(config, open_checkpoint(path), *into.network);
  }
  static void expect_same(Adapter& got, Adapter& want) {
    const auto a = got.parameters(), b = want.parameters();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i]->name, b[i]->name);
      expect_same_bits(a[i]->value.view(), b[i]->value.view());
    }
  }

  TemporaryFolder folder_;
  int files_ = 0;
};

TEST_F(ScpeftImportTest, ALoraIsTheSameFromFilesWithAndWithoutMergedWeights) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_lora");
  const std::string folder = golden("scpeft_scgpt_lora");
  const nlohmann::json config = read_json(folder + "/peft_config.json", FileKind::model);
  ScgptModel one = base("scpeft_scgpt_lora"), two = base("scpeft_scgpt_lora");
  const std::string weights = fingerprint(*one.network);
  const ScpeftImport plain = import(folder + "/model.pt", one, config);
  EXPECT_TRUE(plain.merged.empty());
  EXPECT_TRUE(plain.trained.empty());
  EXPECT_EQ(plain.adapter->options().alpha, 8);
  EXPECT_EQ(plain.adapter->options().rank, 4);
  EXPECT_EQ(plain.adapter->options().last_layer, 1);

  const ScpeftImport merged = import(folder + "/model_saved_in_eval_mode.pt", two, config);
  ASSERT_EQ(merged.merged.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(merged.merged[i].weight,
              cat("transformer_encoder.layers.", i, ".self_attn.in_proj_weight"));
    EXPECT_EQ(merged.merged[i].times, 1);
  }
  expect_same(*merged.adapter, *plain.adapter);
  EXPECT_EQ(fingerprint(*two.network), weights) << "the base must stay what it was";
}

TEST_F(ScpeftImportTest, TwiceMergedWeightsAreSeen) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_lora");
  const std::string folder = golden("scpeft_scgpt_lora");
  const nlohmann::json config = read_json(folder + "/peft_config.json", FileKind::model);
  const auto packed = [](const std::string& name) {
    return canonical_scgpt_name(name).ends_with("in_proj_weight");
  };
  Tensors once = tensors_of(folder + "/model_saved_in_eval_mode.pt");
  const Tensors never = tensors_of(folder + "/model.pt");
  for (auto& [name, tensor] : once)
    for (int64_t i = 0; packed(name) && i < tensor.numel(); ++i)
      tensor.as<float>()[i] += tensor.as<float>()[i] - never.at(name).as<float>()[i];
  ScgptModel into = base("scpeft_scgpt_lora");
  const ScpeftImport got = import(file(once), into, config);
  ASSERT_EQ(got.merged.size(), 2U);
  for (const auto& merged : got.merged) EXPECT_EQ(merged.times, 2) << merged.weight;
}

TEST_F(ScpeftImportTest, AnotherBaseIsRefusedByName) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_encoder");
  ScgptModel into = base("scpeft_scgpt_encoder");
  Tensors changed = tensors_of(golden("scpeft_scgpt_encoder/model.pt"));
  const std::string weight = "transformer_encoder.layers.2.linear1.weight";
  changed.at(weight).as<float>()[3] += 0.01f;
  const std::string weights = fingerprint(*into.network);
  expect_model_error("E-ADAPTER-BASE", weight, [&] { import(file(changed), into); });
  EXPECT_EQ(fingerprint(*into.network), weights);
}

TEST_F(ScpeftImportTest, AnUnknownTensorAndAFileWithoutAnAdapterAreRefused) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_encoder");
  Tensors more = tensors_of(golden("scpeft_scgpt_encoder/model.pt"));
  more["transformer_encoder.layers.0.gate.weight"] = Tensor({2}, DType::f32);
  ScgptModel into = base("scpeft_scgpt_encoder");
  expect_model_error("E-SCPEFT", "gate.weight", [&] { import(file(more), into); });
  Tensors none = tensors_of(golden("scpeft_scgpt_encoder/model.pt"));
  std::erase_if(none, [](const auto& entry) { return is_scpeft_tensor(entry.first); });
  expect_model_error("E-SCPEFT", "no adapter", [&] { import(file(none), into); });
  const nlohmann::json other = {{"peft_type", "TOKEN"}};
  expect_model_error("E-SCPEFT", "arrays of encoder",
                     [&] { import(golden("scpeft_scgpt_encoder/model.pt"), into, other); });
  const nlohmann::json unknown = {{"peft_type", "IA3"}};
  expect_model_error("E-SCPEFT", "asks for \"IA3\"; this version reads LORA",
                     [&] { import(golden("scpeft_scgpt_encoder/model.pt"), into, unknown); });
}

TEST_F(ScpeftImportTest, AnArrayOfAnotherWidthIsRefused) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_encoder");
  Tensors wrong = tensors_of(golden("scpeft_scgpt_encoder/model.pt"));
  const std::string name = "transformer_encoder.layers.1.space_adapter.fc1.weight";
  wrong.at(name) = Tensor({7, 32}, DType::f32);
  ScgptModel into = base("scpeft_scgpt_encoder");
  expect_model_error("E-SCPEFT", name, [&] { import(file(wrong), into); });
}

// The head was trained with the adapter, and so was the packed bias of layers with LoRA.
TEST_F(ScpeftImportTest, WhatWasTrainedWithItComesAlong) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_lora");
  const std::string folder = golden("scpeft_scgpt_lora");
  Tensors moved = tensors_of(folder + "/model.pt");
  for (auto& [name, tensor] : moved)
    if (name == "transformer_encoder.layers.0.self_attn.in_proj_bias" ||
        name == "transformer_encoder.layers.0.self_attn.Wqkv.bias")
      tensor.as<float>()[5] += 0.25f;
  ScgptModel into = base("scpeft_scgpt_lora", 5);  // a fresh head
  const ScpeftImport got =
      import(file(moved), into, read_json(folder + "/peft_config.json", FileKind::model));
  std::set<std::string> names;
  for (const Parameter* p : got.trained) {
    names.insert(p->name);
    expect_same_bits(p->value.view(), moved.at(p->name).view());
  }
  EXPECT_TRUE(names.contains("cls_decoder.out_layer.weight"));
  EXPECT_TRUE(names.contains("transformer_encoder.layers.0.self_attn.in_proj_bias"));
  EXPECT_FALSE(names.contains("transformer_encoder.layers.1.self_attn.in_proj_bias"));
  moved.at("transformer_encoder.layers.2.self_attn.in_proj_bias").as<float>()[0] += 1;
  expect_model_error("E-ADAPTER-BASE", "layers.2.self_attn.in_proj_bias",
                     [&] { import(file(moved), into); });
}

// W' = W H_1 ... H_r of the packed projection, by the formula of the code that made the published
// results, whose file has the frozen W beside u.
TEST_F(ScpeftImportTest, ReflectionsTurnThePackedProjection) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_none");
  constexpr int64_t kRank = 4;
  Tensors all;
  for (const auto& [theirs, tensor] : tensors_of(golden("scpeft_scgpt_none/model.pt"))) {
    std::string name = theirs;
    replace(name, "self_attn.in_proj_", "self_attn.Wqkv.");
    if (!is_scpeft_tensor(name)) all[name] = tensor.clone();
  }
  ScgptModel into = base("scpeft_scgpt_none");
  const int64_t dim = into.config.dim;
  const auto key = [](int layer, const char* what) {
    return cat("transformer_encoder.layers.", layer, ".self_attn.Wqkv.", what);
  };
  for (int layer : {1, 2}) {
    Tensor u({dim, kRank}, DType::f32);
    for (int64_t i = 0; i < u.numel(); ++i)
      u.as<float>()[i] = std::sin(static_cast<float>(i * (layer + 1)));
    all[key(layer, "hra_u")] = std::move(u);
  }
  const ScpeftImport got = import(file(all), into);
  EXPECT_EQ(got.adapter->kind(), "hra");
  EXPECT_EQ(got.adapter->options().first_layer, 1);
  EXPECT_EQ(got.adapter->options().last_layer, 2);
  EXPECT_TRUE(got.trained.empty());
  EXPECT_TRUE(got.adapter->merge_into(*into.network));
  for (int layer : {1, 2}) {
    const Tensor& u = all.at(key(layer, "hra_u"));
    const auto us = u.as<float, 2>();
    std::vector<double> want = values_of(std::as_const(all.at(key(layer, "weight"))).view());
    for (int64_t r = 0; r < kRank; ++r) {
      double square = 0;
      for (int64_t j = 0; j < dim; ++j) square += static_cast<double>(us(j, r)) * us(j, r);
      for (int64_t i = 0; i < 3 * dim; ++i) {
        double along = 0;
        for (int64_t j = 0; j < dim; ++j)
          along += want[static_cast<size_t>(i * dim + j)] * us(j, r);
        for (int64_t j = 0; j < dim; ++j)
          want[static_cast<size_t>(i * dim + j)] -= 2 * along * us(j, r) / square;
      }
    }
    const Parameter* weight = into.network->parameters().find(
        cat("transformer_encoder.layers.", layer, ".self_attn.in_proj_weight"));
    const std::vector<double> turned = values_of(weight->value.view());
    ASSERT_EQ(turned.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(turned[i], want[i], 1e-5) << i;
  }

  // Biases of these layers may have been trained; an odd number of reflections is none of HRA's.
  all.at(key(1, "bias")).as<float>()[3] += 0.5f;
  ScgptModel again = base("scpeft_scgpt_none");
  const ScpeftImport moved = import(file(all), again);
  ASSERT_EQ(moved.trained.size(), 1U);
  EXPECT_EQ(moved.trained[0]->name, "transformer_encoder.layers.1.self_attn.in_proj_bias");
  all[key(1, "hra_u")] = Tensor({dim, 3}, DType::f32);
  ScgptModel odd = base("scpeft_scgpt_none");
  expect_model_error("E-SCPEFT", "even number", [&] { import(file(all), odd); });
}

// W' = W blockdiag((I - S_b) (I + S_b)^-1)^T in f64 with S_b = (R_b - R_b^T) / 2, where R_b is
// first scaled down to |R_b| = 1e-5 n^2 / sqrt(blocks): the code that made the published results.
std::vector<double> rotated(const std::vector<double>& weight, const Tensor& rotation) {
  const auto r = rotation.as<float, 3>();
  const int64_t blocks = r.dim(0), n = r.dim(1), dim = blocks * n;
  const auto at = [n](int64_t i, int64_t j) { return static_cast<size_t>(i * n + j); };
  std::vector<double> out(weight.size());
  for (int64_t b = 0; b < blocks; ++b) {
    double norm = 0;
    for (int64_t i = 0; i < n * n; ++i) norm = std::hypot(norm, r(b, i / n, i % n));
    const double epsilon =
        1e-5 * static_cast<double>(n * n) / std::sqrt(static_cast<double>(blocks));
    const double scale = norm > epsilon ? epsilon / norm : 1;
    // Rows of I + S are turned into those of I; the same is done to I, which becomes the inverse.
    std::vector<double> left(static_cast<size_t>(n * n)), inverse(left.size()), minus(left.size());
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double s = scale * (static_cast<double>(r(b, i, j)) - r(b, j, i)) / 2;
        left[at(i, j)] = (i == j) + s;
        minus[at(i, j)] = (i == j) - s;
        inverse[at(i, j)] = i == j;
      }
    for (int64_t p = 0; p < n; ++p) {
      const double pivot = left[at(p, p)];
      for (int64_t j = 0; j < n; ++j) {
        left[at(p, j)] /= pivot;
        inverse[at(p, j)] /= pivot;
      }
      for (int64_t i = 0; i < n; ++i) {
        const double factor = i == p ? 0 : left[at(i, p)];
        for (int64_t j = 0; j < n; ++j) {
          left[at(i, j)] -= factor * left[at(p, j)];
          inverse[at(i, j)] -= factor * inverse[at(p, j)];
        }
      }
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double q = 0;
        for (int64_t k = 0; k < n; ++k) q += minus[at(i, k)] * inverse[at(k, j)];
        // Column i of W' is the sum over j of Q_ij times column j of W.
        for (size_t row = 0; row < weight.size(); row += static_cast<size_t>(dim))
          out[row + static_cast<size_t>(b * n + i)] +=
              q * weight[row + static_cast<size_t>(b * n + j)];
      }
  }
  return out;
}

TEST_F(ScpeftImportTest, RotationsTurnThePackedProjection) {
  constexpr int64_t kDim = 256, kBlock = 128;
  const auto original = tiny_network(1, 3, kDim), into = tiny_network(1, 3, kDim);
  const auto key = [](int layer, const char* what) {
    return cat("transformer_encoder.layers.", layer, ".self_attn.", what);
  };
  Tensors all;
  for (const Parameter* p : original->parameters().all()) {
    std::string name = p->name;
    replace(name, "self_attn.in_proj_", "self_attn.Wqkv.OFT.");
    all[name] = p->value.clone();
  }
  for (const char* part : {"weight", "bias"})  // a second name for the same
    all[key(0, "in_proj_") + part] = all.at(key(0, "Wqkv.OFT.") + part).clone();
  std::map<int, std::vector<double>> want;
  for (int layer : {0, 1}) {
    Tensor r({2, kBlock, kBlock}, DType::f32);
    const auto values = r.as<float, 3>();
    for (int64_t i = 0; i < kBlock; ++i)
      for (int64_t j = 0; j < kBlock; ++j)
        for (int64_t b : {0, 1})
          values(b, i, j) = 1e-3F * std::sin(static_cast<float>((3 * b + 7 * i + j * j) % 97));
    // The first block is longer than it may be. In the second layer it is skew itself, as one that
    // gradients made is.
    values(0, 0, 1) = 3;
    for (int64_t i = 0; layer == 1 && i < kBlock; ++i)
      for (int64_t j = 0; j <= i; ++j) values(0, i, j) = i == j ? 0 : -values(0, j, i);
    want[layer] =
        rotated(values_of(std::as_const(all.at(key(layer, "Wqkv.OFT.weight"))).view()), r);
    all[key(layer, "Wqkv.R")] = std::move(r);
  }

  const ScpeftImport got = import_scpeft({}, open_checkpoint(file(all)), *into);
  EXPECT_EQ(got.adapter->kind(), "oft");
  EXPECT_EQ(got.adapter->options().blocks, 2);
  EXPECT_EQ(got.adapter->options().targets, (std::vector<std::string>{"q", "k", "v"}));
  EXPECT_EQ(got.adapter->options().last_layer, 1);
  EXPECT_TRUE(got.trained.empty());

  // Attached, it computes what the rotated weights do, and not what they were before.
  got.adapter->attach(*into);
  const TinyBatch cells;
  const std::vector<double> attached = values_of(encoded(*into, cells.batch()).view());
  got.adapter->detach(*into);
  const std::vector<double> frozen = values_of(encoded(*into, cells.batch()).view());
  for (const auto& [layer, weight] : want) {
    Parameter* p = original->parameters().find(key(layer, "in_proj_weight"));
    for (size_t i = 0; i < weight.size(); ++i)
      p->value.as<float>()[i] = static_cast<float>(weight[i]);
  }
  const std::vector<double> rotated_weights = values_of(encoded(*original, cells.batch()).view());
  double moved = 0;
  for (size_t i = 0; i < attached.size(); ++i) {
    EXPECT_NEAR(attached[i], rotated_weights[i], 1e-5) << i;
    moved = std::max(moved, std::abs(attached[i] - frozen[i]));
  }
  EXPECT_GT(moved, 1e-3);

  // Merged, it has these weights; COFT's bound of ours ends 1e-5 of the angle inside.
  EXPECT_TRUE(got.adapter->merge_into(*into));
  for (const auto& [layer, weight] : want) {
    const std::vector<double> merged =
        values_of(into->parameters().find(key(layer, "in_proj_weight"))->value.view());
    ASSERT_EQ(merged.size(), weight.size());
    for (size_t i = 0; i < weight.size(); ++i) EXPECT_NEAR(merged[i], weight[i], 5e-7) << i;
  }
}

TEST_F(ScpeftImportTest, RotationsThatDoNotFitAreRefused) {
  const auto into = tiny_network();
  Tensors all;
  for (const Parameter* p : into->parameters().all()) all[p->name] = p->value.clone();
  const auto key = [](int layer, const char* what) {
    return cat("transformer_encoder.layers.", layer, ".self_attn.", what);
  };
  const auto refused = [&](const char* code, const std::string& part,
                           const nlohmann::json& config = {}) {
    expect_model_error(code, part,
                       [&] { import_scpeft(config, open_checkpoint(file(all)), *into); });
  };
  for (const Shape& shape : {Shape{4, 4}, Shape{4, 4, 3}, Shape{2, 4, 4}, Shape{16, 1, 1}}) {
    all[key(0, "Wqkv.R")] = Tensor(shape, DType::f32);
    refused("E-SCPEFT", cat("R is ", shape, "; [blocks, n, n] is needed"));
  }
  all[key(0, "Wqkv.R")] = Tensor({4, 4, 4}, DType::f32);
  refused("E-SCPEFT", "asks for \"HRA\", the file holds arrays of oft", {{"peft_type", "HRA"}});
  all[key(1, "Wqkv.R")] = Tensor({2, 8, 8}, DType::f32);
  refused("E-SCPEFT", "is [2, 8, 8], not what the first layer with OFT has");
  all.erase(key(1, "Wqkv.R"));
  // Biases beside OFT are not trained.
  all.at(key(0, "in_proj_bias")).as<float>()[1] += 1;
  refused("E-ADAPTER-BASE", key(0, "in_proj_bias"));
}

// The names of the code line that made the published results.
TEST_F(ScpeftImportTest, TheReproductionsNamesAreTheSameAdapter) {
  for (const char* name : {"scpeft_scgpt_hybrid", "scpeft_scgpt_prefix", "scpeft_scgpt_token"}) {
    SCGRAFT_NEEDS_SHARED(cat("golden/", name));
    ScgptModel one = base(name), two = base(name);
    const ScpeftImport want = import(golden(name) + "/model.pt", one);
    Tensors renamed;
    for (const auto& [theirs, tensor] : tensors_of(golden(name) + "/model.pt")) {
      std::string other = theirs;
      replace(other, "value_encoder.adapter.fc", "value_encoder.Space_Adapter.D_fc");
      replace(other, ".space_adapter.fc", ".Space_Adapter.D_fc");
      replace(other, ".adapter_embeddings", ".prompt_embeddings");
      renamed[other] = tensor.clone();
    }
    const ScpeftImport got = import(file(renamed), two);
    EXPECT_EQ(got.adapter->kind(), want.adapter->kind());
    expect_same(*got.adapter, *want.adapter);
  }
}

TEST_F(ScpeftImportTest, TheReproductionsEncoderIsTheParallelLayout) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_encoder");
  Tensors all;
  for (const auto& [theirs, tensor] : tensors_of(golden("scpeft_scgpt_encoder/model.pt"))) {
    std::string space = theirs, mlp = theirs;
    replace(space, ".space_adapter.fc", ".Space_Adapter.D_fc");
    replace(mlp, ".space_adapter.fc", ".MLP_Adapter.D_fc");
    all[space] = tensor.clone();
    all[mlp] = tensor.clone();
  }
  ScgptModel into = base("scpeft_scgpt_encoder");
  const ScpeftImport got = import(file(all), into);
  EXPECT_EQ(got.adapter->options().layout, "parallel");
  EXPECT_EQ(got.adapter->parameters().size(), 2U * 8U);
  std::erase_if(all, [](const auto& e) { return e.first.find("1.MLP_Adapter") != e.first.npos; });
  expect_model_error("E-SCPEFT", "MLP_Adapter", [&] { import(file(all), into); });
}

// A union whose parts lie in different layers: saved and loaded it computes the same.
TEST_F(ScpeftImportTest, PartsKeepTheirOwnLayersInAnAdapterDirectory) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_encoder");
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_prefix");
  Tensors both = tensors_of(golden("scpeft_scgpt_encoder/model.pt"));
  Tensor rows({1, 3, 32}, DType::f32);
  for (int64_t i = 0; i < rows.numel(); ++i)
    rows.as<float>()[i] = std::sin(static_cast<float>(i)) * 0.5f;
  for (int layer = 0; layer < 3; ++layer)
    both[cat("transformer_encoder.layers.", layer, ".adapter_embeddings")] = rows.clone();
  ScgptModel into = base("scpeft_scgpt_encoder"), again = base("scpeft_scgpt_encoder");
  const ScpeftImport got = import(file(both), into);
  EXPECT_EQ(got.adapter->kind(), "encoder+prefix");
  ASSERT_EQ(got.adapter->options().parts.size(), 2U);
  EXPECT_EQ(got.adapter->options().parts[0].last_layer, 1);
  EXPECT_EQ(got.adapter->options().parts[1].last_layer, 2);
  AdapterBundle bundle;
  bundle.base_fingerprint = fingerprint(*into.network);
  save_adapter(folder_ / "a", bundle, got.adapter.get(), *into.network, {}, Overwrite::refuse);
  const auto loaded =
      attach_adapter(load_adapter(folder_ / "a"), *again.network, bundle.base_fingerprint, false);
  expect_same(*loaded, *got.adapter);
  got.adapter->attach(*into.network);
  const TinyBatch cells;
  expect_same_bits(encoded(*again.network, cells.batch()).view(),
                   encoded(*into.network, cells.batch()).view());
}

}  // namespace
}  // namespace scgraft
