// SPDX-License-Identifier: Apache-2.0
#include "adapters/store.h"
#include "tests/adapters/store_fixture.h"

namespace scgraft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

TEST_F(StoreTest, EveryDamagedFileIsFound) {
  save(path());
  for (const FileCheck& check : verify_adapter(path())) EXPECT_EQ(check.fault, "") << check.file;
  EXPECT_EQ(verify_adapter(path()).size(), 9u);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path()))
    names.push_back(entry.path().filename().string());
  for (const std::string& name : names) {
    if (name == kManifestFile) continue;
    SCOPED_TRACE(name);
    const std::string file = path() + "/" + name;
    const std::string good = read_text(file);
    std::string bad = good;
    bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 1);
    for (const bool gone : {false, true}) {
      gone ? static_cast<void>(fs::remove(file)) : static_cast<void>(put(file, bad));
      if (name == "README.md")
        EXPECT_NO_THROW(load_adapter(path()));
      else if (name == "adapter_config.json" && gone)
        expect_model_error("E-ADAPTER", name, [&] { load_adapter(path()); });
      else
        expect_model_error("E-ADAPTER-DAMAGED", name, [&] { load_adapter(path()); });
      if (name == "adapter_config.json" && gone) continue;
      const auto checks = verify_adapter(path());
      for (const FileCheck& check : checks) EXPECT_EQ(check.ok(), check.file != name) << check.file;
    }
    put(file, good);
  }
  put(path() + "/extra.json", "{}");
  EXPECT_THAT(verify_adapter(path()).back().fault, ::testing::HasSubstr("not listed"));
  expect_model_error("E-ADAPTER-DAMAGED", "extra.json", [&] { load_adapter(path()); });
  fs::remove(path() + "/extra.json");
  fs::remove(path() + "/" + kManifestFile);
  expect_model_error("E-ADAPTER-DAMAGED", "MANIFEST.sha256 is missing",
                     [&] { load_adapter(path()); });
}

TEST_F(StoreTest, ManifestCannotPointOutside) {
  save(path());
  for (const std::string name : {"../secret", "/etc/passwd", "..", "", "MANIFEST.sha256"}) {
    put(path() + "/" + kManifestFile, std::string(64, '0') + "  " + name + "\n");
    expect_model_error("E-MANIFEST", "line 1", [&] { load_adapter(path()); });
  }
  put(path() + "/" + kManifestFile, std::string(63, '0') + "g  a\n");
  expect_model_error("E-MANIFEST", "line 1", [&] { load_adapter(path()); });
}

TEST_F(StoreTest, WhatIsNoAdapterIsSaidSo) {
  expect_model_error("E-ADAPTER", "no such adapter folder", [&] { load_adapter(path()); });
  fs::create_directory(path());
  expect_model_error("E-ADAPTER", "adapter_config.json is missing", [&] { load_adapter(path()); });
  put(path() + "/args.json", "{}");
  try {
    load_adapter(path());
    FAIL();
  } catch (const ModelError& error) {
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("backbone"));
  }
}

struct BadConfig {
  std::string part;
  std::function<void(json&)> change;
};

TEST_F(StoreTest, ConfigurationThatCannotBeComputedIsRefused) {
  const std::vector<BadConfig> cases = {
      {"\"VERA\"; this version reads SCGRAFT_ENCODER, HRA, LORA",
       [](json& c) { c["peft_type"] = "VERA"; }},
      {"no peft_type", [](json& c) { c.erase("peft_type"); }},
      {"peft_type is not a string", [](json& c) { c["peft_type"] = 3; }},
      {"use_dora", [](json& c) { c["use_dora"] = true; }},
      {"fan_in_fan_out", [](json& c) { c["fan_in_fan_out"] = true; }},
      {"different adapters",
       [](json& c) {
         c["rank_pattern"] = {{"q_proj", 4}};
       }},
      {"bias is \"all\"", [](json& c) { c["bias"] = "all"; }},
      {"r is 0", [](json& c) { c["r"] = 0; }},
      {"r is 1.5", [](json& c) { c["r"] = 1.5; }},
      {"lora_alpha is not a number", [](json& c) { c["lora_alpha"] = "8"; }},
      {"target_modules is not a list",
       [](json& c) {
         c["target_modules"] = {1, 2};
       }},
      {"different adapters", [](json& c) { c["r"] = 4; }},
      {"different adapters", [](json& c) { c["peft_type"] = "SCGRAFT_MODULES"; }},
  };
  save(path());
  const std::string good = read_text(path() + "/adapter_config.json");
  for (const BadConfig& bad : cases) {
    SCOPED_TRACE(bad.part);
    put(path() + "/adapter_config.json", good);
    rewrite("adapter_config.json", bad.change);
    reseal();
    expect_model_error("E-ADAPTER", bad.part, [&] { load_adapter(path()); });
  }
  // A key from the future is none of our business.
  put(path() + "/adapter_config.json", good);
  rewrite("adapter_config.json", [](json& c) { c["invented_later"] = 1; });
  reseal();
  EXPECT_NO_THROW(load_adapter(path()));
}

TEST_F(StoreTest, RecordOfTheWrongShapeIsRefused) {
  const std::vector<BadConfig> cases = {
      {"no section", [](json& p) { p.erase("scgraft"); }},
      {"\"base\"", [](json& p) { p["scgraft"].erase("base"); }},
      {"\"trained\"", [](json& p) { p["scgraft"]["trained"] = "all"; }},
      {"\"r\"", [](json& p) { p["scgraft"]["adapter"]["r"] = "two"; }},
      {"format 2", [](json& p) { p["scgraft"]["format"] = 2; }},
  };
  save(path());
  const std::string good = read_text(path() + "/provenance.json");
  for (const BadConfig& bad : cases) {
    SCOPED_TRACE(bad.part);
    put(path() + "/provenance.json", good);
    rewrite("provenance.json", bad.change);
    reseal();
    expect_model_error("E-ADAPTER", bad.part, [&] { load_adapter(path()); });
  }
}

TEST_F(StoreTest, EveryTensorMustFitAndNothingIsChangedBefore) {
  using Tensors = std::map<std::string, Tensor>;
  const std::string key =
      "base_model.model.transformer_encoder.layers.1.self_attn.q_proj.lora_B.weight";
  const std::vector<std::pair<std::string, std::function<void(Tensors&)>>> cases = {
      {key + " is missing", [&](Tensors& t) { t.erase(key); }},
      {"cls_decoder.out_layer.bias is missing",
       [&](Tensors& t) { t.erase("base_model.model.cls_decoder.out_layer.bias"); }},
      {"extra has no place", [&](Tensors& t) { t["extra"] = Tensor({1}, DType::f32); }},
      {key + " is [2, 16], the backbone needs [16, 2]",
       [&](Tensors& t) {
         t[key] = Tensor({2, 16}, DType::f32);
       }},
      {key + " is [16], ", [&](Tensors& t) { t[key] = Tensor({16}, DType::f32); }},
      {key + " is of type I64",
       [&](Tensors& t) {
         t[key] = Tensor({16, 2}, DType::i64);
       }},
  };
  save(path());
  const std::string file = path() + "/adapter_model.safetensors";
  const std::string good = read_text(file);
  const auto other = tiny_network(9);
  const std::string before = fingerprint(*other);
  for (const auto& [part, change] : cases) {
    SCOPED_TRACE(part);
    put(file, good);
    rewrite_tensors(change);
    reseal();
    const LoadedBundle loaded = load_adapter(path());
    expect_model_error("E-ADAPTER-TENSOR", part,
                       [&] { attach_adapter(loaded, *other, bundle_.base_fingerprint, false); });
    EXPECT_EQ(fingerprint(*other), before);
    EXPECT_EQ(other->linear_site("layers.0.attn.q").site(), nullptr);
  }
}

TEST_F(StoreTest, OnlyTheFirstFiveFaultsAreListed) {
  save(path());
  rewrite_tensors([](std::map<std::string, Tensor>& t) {
    for (int i = 0; i < 7; ++i) t[cat("extra", i)] = Tensor({1}, DType::f32);
  });
  reseal();
  const LoadedBundle loaded = load_adapter(path());
  expect_model_error("E-ADAPTER-TENSOR", "and 2 more",
                     [&] { attach_adapter(loaded, *network_, bundle_.base_fingerprint, false); });
}

TEST_F(StoreTest, AHeadOfAnotherWidthOrNoHeadIsRefused) {
  save(path());
  const LoadedBundle loaded = load_adapter(path());
  const auto wide = tiny_network(1, 4);
  expect_model_error("E-ADAPTER-TENSOR", "out_layer",
                     [&] { attach_adapter(loaded, *wide, bundle_.base_fingerprint, false); });
  const auto none = tiny_network(1, 0);
  expect_model_error("E-ADAPTER-TENSOR", "cls_decoder",
                     [&] { attach_adapter(loaded, *none, bundle_.base_fingerprint, false); });
  const auto large = tiny_network(1, 3, 32);
  expect_model_error("E-ADAPTER-TENSOR", "needs",
                     [&] { attach_adapter(loaded, *large, bundle_.base_fingerprint, false); });
}

}  // namespace
}  // namespace scgraft
