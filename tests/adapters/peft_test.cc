// SPDX-License-Identifier: Apache-2.0
// Folders for PEFT and from it (adapters/peft_export.h, adapters/peft_tensors.h); what PEFT itself
// says of them is in tests/interop/peft_round_trip.py.
#include "adapters/peft_export.h"
#include "tests/adapters/store_fixture.h"
#include "tests/io/torch_state.h"

namespace scgraft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;
using Values = std::vector<double>;

class PeftTest : public StoreTest {
 protected:
  std::string theirs() const { return folder_ / "peft"; }
  void make(const AdapterOptions& options) {
    adapter_ = make_adapter(options, *network_, 3);
    set_values(adapter_->parameters(), 2);
    save(path());
  }
  // A folder as PEFT leaves it.
  void write(const std::string& config, std::vector<NamedTensor> tensors) {
    fs::create_directories(theirs());
    for (NamedTensor& tensor : tensors) tensor.name = "base_model.model." + tensor.name;
    write_safetensors(theirs() + "/adapter_model.safetensors", tensors, {}, Overwrite::replace);
    put(theirs() + "/adapter_config.json", config);
  }
  // Rows of a projection with the adapter of theirs() inside.
  Values merged(const std::string& site) {
    const auto network = tiny_network();
    const auto adapter = attach_adapter(load_adapter(theirs()), *network, "abc", true);
    adapter->merge_into(*network);
    const ConstTensorView rows = network->linear_site(site).weight_rows();
    Tensor copied(rows.shape(), rows.dtype());
    copy(rows, copied.view());
    return values_of(std::as_const(copied).view());
  }
  Values original(const std::string& site) {
    const ConstTensorView rows = network_->linear_site(site).weight_rows();
    Tensor copied(rows.shape(), rows.dtype());
    copy(rows, copied.view());
    return values_of(std::as_const(copied).view());
  }
  // original + scale B A, with rows [first, first + 16) of B.
  Values expected(const std::string& site, const Tensor& a, const Tensor& b, double scale,
                  int64_t first = 0) {
    Values want = original(site);
    for (int64_t i = 0; i < 16; ++i)
      for (int64_t j = 0; j < a.dim(1); ++j)
        for (int64_t r = 0; r < a.dim(0); ++r)
          want[static_cast<size_t>(i * a.dim(1) + j)] +=
              scale * std::as_const(b).as<float, 2>()(first + i, r) * a.as<float, 2>()(r, j);
    return want;
  }
  static Tensor matrix(int64_t rows, int64_t columns, float start) {
    Tensor out({rows, columns}, DType::f32);
    for (int64_t i = 0; i < out.numel(); ++i) out.as<float>()[i] = std::sin(start += 0.3f);
    return out;
  }
  static void expect_near(const Values& got, const Values& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5) << i;
  }
};

TEST_F(PeftTest, QueryAndValueGoOutAsOnePairAndComeBack) {
  make({.rank = 2, .alpha = 5, .targets = {"v", "q", "ffn_in"}});
  export_peft(load_adapter(path()), theirs(), Overwrite::refuse);
  const json config = read_json(theirs() + "/adapter_config.json", FileKind::model);
  std::vector<std::string> targets;
  for (const char* module : {"linear1", "self_attn.Wqkv"})
    for (int layer : {0, 1})
      targets.push_back(cat("transformer_encoder.layers.", layer, ".", module));
  std::sort(targets.begin(), targets.end());
  EXPECT_EQ(config["target_modules"], json(targets));
  EXPECT_EQ(config["r"], 2);
  EXPECT_EQ(config["lora_alpha"], 5);
  EXPECT_EQ(config["rank_pattern"], (json{{"Wqkv", 4}}));
  EXPECT_EQ(config["alpha_pattern"], (json{{"Wqkv", 10.0}}));
  const Safetensors file = Safetensors::open(theirs() + "/adapter_model.safetensors");
  const std::string key = "base_model.model.transformer_encoder.layers.1.self_attn.Wqkv.lora_";
  EXPECT_EQ(file.tensor(key + "A.weight").shape(), (Shape{4, 16}));
  const Tensor b = file.tensor(key + "B.weight");
  ASSERT_EQ(b.shape(), (Shape{48, 4}));
  for (int64_t i = 16; i < 32; ++i)
    for (int64_t r = 0; r < 4; ++r) EXPECT_EQ((std::as_const(b).as<float, 2>()(i, r)), 0) << i;

  const LoadedBundle loaded = load_adapter(theirs());
  EXPECT_FALSE(loaded.recorded);
  const auto other = tiny_network();
  const auto again = attach_adapter(loaded, *other, "abc", true);
  EXPECT_EQ(again->options().rank, 4);
  for (size_t i = 0; i < head_of(*other).size(); ++i)
    expect_same_bits(head_of(*other)[i]->value.view(), head_of(*network_)[i]->value.view());
  adapter_->attach(*network_);
  TinyBatch cells;
  const Values got = values_of(encoded(*other, cells.batch()).view());
  const Values want = values_of(encoded(*network_, cells.batch()).view());
  adapter_->detach(*network_);
  expect_near(got, want);
  const Values without = values_of(encoded(*network_, cells.batch()).view());
  EXPECT_NE(without, want);
}

TEST_F(PeftTest, WithoutOtherModulesTheRankItselfGrows) {
  make({.rank = 2, .alpha = 5, .targets = {"q", "k", "v"}});
  export_peft(load_adapter(path()), theirs(), Overwrite::refuse);
  const json config = read_json(theirs() + "/adapter_config.json", FileKind::model);
  EXPECT_EQ(config["r"], 6);
  EXPECT_EQ(config["lora_alpha"], 15);
  EXPECT_EQ(config["rank_pattern"], json::object());
}

TEST_F(PeftTest, APairOfTheWholeProjectionHasRowsForEach) {
  const Tensor a = matrix(3, 16, 1), b = matrix(48, 3, 2);
  const std::string module = "transformer_encoder.layers.0.self_attn.Wqkv.lora_";
  write(R"({"peft_type": "LORA", "target_modules": ["0.self_attn.Wqkv"], "r": 3, "lora_alpha": 6})",
        {{module + "A.weight", a.view()}, {module + "B.weight", b.view()}});
  int64_t first = 0;
  for (const char* site : {"layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v"}) {
    expect_near(merged(site), expected(site, a, b, 2, first));
    first += 16;
  }
  EXPECT_EQ(merged("layers.1.attn.q"), original("layers.1.attn.q"));
}

TEST_F(PeftTest, RanksAndAlphasMayDiffer) {
  const std::string layers = "transformer_encoder.layers.";
  const Tensor qa = matrix(2, 16, 1), qb = matrix(16, 2, 2), va = matrix(5, 16, 3),
               vb = matrix(16, 5, 4);
  // The paths begin below transformer_encoder, as those of a wrapped part of the model do.
  write(R"({"peft_type": "LORA", "target_modules": ["0.self_attn.q_proj", "1.self_attn.v_proj"],
            "r": 2, "lora_alpha": 6, "rank_pattern": {"v_proj": 5}, "use_rslora": true,
            "alpha_pattern": {"layers.1.self_attn.v_proj": 1}})",
        {{"layers.0.self_attn.q_proj.lora_A.weight", qa.view()},
         {"layers.0.self_attn.q_proj.lora_B.weight", qb.view()},
         {"layers.1.self_attn.v_proj.lora_A.weight", va.view()},
         {"layers.1.self_attn.v_proj.lora_B.weight", vb.view()}});
  expect_near(merged("layers.0.attn.q"), expected("layers.0.attn.q", qa, qb, 6 / std::sqrt(2.0)));
  expect_near(merged("layers.1.attn.v"), expected("layers.1.attn.v", va, vb, 1 / std::sqrt(5.0)));
  // What the file does not have stays what it was.
  EXPECT_EQ(merged("layers.1.attn.q"), original("layers.1.attn.q"));
  EXPECT_EQ(merged("layers.0.attn.v"), original("layers.0.attn.v"));
}

// What older versions of PEFT write, with torch.save.
TEST_F(PeftTest, AFileOfTorchIsReadWhereThereIsNoOther) {
  const Tensor a = matrix(2, 16, 1), b = matrix(16, 2, 2), other = matrix(16, 2, 3);
  const Tensor half = tensor_of(b.shape(), DType::f16, values_of(b.view()));
  const std::string site = "layers.0.attn.q", torch = theirs() + "/adapter_model.bin",
                    module = "transformer_encoder.layers.0.self_attn.q_proj.lora_";
  const std::string safetensors = theirs() + "/adapter_model.safetensors";
  const auto write_torch = [&](const Tensor& of_b) {
    const std::string wrapped = "base_model.model." + module;
    put(torch, torch_state(std::vector<NamedTensor>{{wrapped + "A.weight", a.view()},
                                                    {wrapped + "B.weight", of_b.view()}}));
  };
  write(
      R"({"peft_type": "LORA", "target_modules": ["0.self_attn.q_proj"], "r": 2, "lora_alpha": 6})",
      {{module + "A.weight", a.view()}, {module + "B.weight", other.view()}});
  write_torch(b);
  expect_near(merged(site), expected(site, a, other, 3));
  fs::remove(safetensors);
  expect_near(merged(site), expected(site, a, b, 3));
  write_torch(half);
  expect_near(merged(site), expected(site, a, half.converted(DType::f32), 3));

  const auto refused = [&](const char* code, const std::string& part) {
    expect_model_error(code, part, [&] { load_adapter(theirs()); });
  };
  const std::string call =
      pickled::global("os", "system").append(pickled::tuple({pickled::text("true")})).append("R");
  put(torch, torch_file(pickled::whole(call), {}));
  refused("E-PICKLE-GLOBAL", "os");
  put(safetensors, "no tensors");
  refused("E-ST-HEADER", "adapter_model.safetensors");
  fs::remove(safetensors);
  fs::remove(torch);
  refused("E-ADAPTER", "adapter_model.safetensors is missing");

  // No file of this program's own directories.
  save(path());
  fs::remove(path() + "/adapter_model.safetensors");
  put(path() + "/adapter_model.bin", torch_state({}));
  reseal();
  expect_model_error("E-ADAPTER", "adapter_model.safetensors is missing",
                     [&] { load_adapter(path()); });
}

TEST_F(PeftTest, WhatTheConfigurationNamesMustBeThere) {
  const std::string module = "transformer_encoder.layers.0.self_attn.q_proj.lora_";
  const Tensor a = matrix(2, 16, 1), b = matrix(16, 2, 1);
  const std::vector<NamedTensor> tensors = {{module + "A.weight", a.view()},
                                            {module + "B.weight", b.view()}};
  const auto refused = [&](const std::string& more, const std::string& said) {
    write(R"({"peft_type": "LORA", "r": 2, "target_modules": )" + more + "}", tensors);
    const auto network = tiny_network();
    const std::string before = fingerprint(*network);
    expect_model_error("E-ADAPTER-TENSOR", said,
                       [&] { attach_adapter(load_adapter(theirs()), *network, "abc", true); });
    EXPECT_EQ(fingerprint(*network), before);
  };
  refused(R"(["q_proj"])", "layers.1.self_attn.q_proj.lora_A.weight is missing");
  refused(R"(["0.self_attn.q_proj"], "modules_to_save": ["cls_decoder"])",
          "cls_decoder._decoder.0.weight is missing");
  refused(R"(["0.self_attn.q_proj"], "rank_pattern": {"q_proj": 3})", "the backbone needs [3, 16]");
  write(R"({"peft_type": "LORA", "r": 2, "target_modules": ["0.self_attn.q_proj"],
            "rank_pattern": {".*": 2}})",
        tensors);
  expect_model_error("E-ADAPTER", "names of modules",
                     [&] { attach_adapter(load_adapter(theirs()), *network_, "abc", true); });
  // PEFT adds "score" to the modules of every classifier; there is none of this name.
  write(R"({"peft_type": "LORA", "r": 2, "target_modules": ["0.self_attn.q_proj"],
            "modules_to_save": ["score"]})",
        tensors);
  EXPECT_NO_THROW(
      attach_adapter(load_adapter(theirs()), *tiny_network(), "abc", true)->detach(*network_));
}

TEST_F(PeftTest, WhatPeftHasNoTypeForIsRefused) {
  const auto refused = [&](const std::string& said) {
    try {
      export_peft(load_adapter(path()), theirs(), Overwrite::refuse);
      FAIL() << said;
    } catch (const ModelError& error) {
      EXPECT_EQ(error.code(), "E-ADAPTER-EXPORT");
      EXPECT_THAT(error.what(), ::testing::HasSubstr(said));
      EXPECT_THAT(error.hint(), ::testing::HasSubstr("adapter merge"));
    }
    EXPECT_FALSE(fs::exists(theirs()));
    fs::remove_all(path());
  };
  make({.type = "token"});
  refused("kind token");
  make({.type = "lora+token", .rank = 2});
  refused("kind lora+token");
  make({.type = "hra", .rank = 2, .targets = {"q"}});
  refused("Wqkv as a whole");
  const auto head = head_of(*network_);
  save_adapter(path(), bundle_, nullptr, *network_, head, Overwrite::refuse);
  refused("no adapter");
  adapter_ = make_adapter({.rank = 2}, *network_, 3);
  Parameter* bias =
      network_->parameters().find("transformer_encoder.layers.0.self_attn.in_proj_bias");
  save_adapter(path(), bundle_, adapter_.get(), *network_, std::vector<Parameter*>{bias},
               Overwrite::refuse);
  refused("in_proj_bias was trained by itself");
  make({.rank = 2});
  export_peft(load_adapter(path()), folder_ / "once", Overwrite::refuse);
  fs::remove_all(path());
  fs::rename(folder_ / "once", path());
  refused("opens it as it is");
}

}  // namespace
}  // namespace scgraft
