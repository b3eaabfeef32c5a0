// SPDX-License-Identifier: Apache-2.0
#include "adapters/store.h"

#include "tests/adapters/store_fixture.h"

namespace scgraft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

TEST_F(StoreTest, ConfigurationIsWhatPeftReads) {
  save(path());
  const json config = read_json(path() + "/adapter_config.json", FileKind::model);
  std::vector<std::string> targets;
  for (int layer : {0, 1})
    for (const char* projection : {"v", "q"})
      targets.push_back(
          cat("transformer_encoder.layers.", layer, ".self_attn.", projection, "_proj"));
  const json want = {{"peft_type", "LORA"},
                     {"target_modules", targets},
                     {"r", 2},
                     {"lora_alpha", 5},
                     {"lora_dropout", 0.0},
                     {"bias", "none"},
                     {"fan_in_fan_out", false},
                     {"base_model_name_or_path", bundle_.base_path},
                     {"revision", nullptr},
                     {"task_type", nullptr},
                     {"inference_mode", true},
                     {"rank_pattern", json::object()},
                     {"alpha_pattern", json::object()},
                     {"modules_to_save", {"cls_decoder"}},
                     {"use_rslora", false},
                     {"use_dora", false},
                     {"peft_version", config["peft_version"]}};
  EXPECT_EQ(config, want);
  EXPECT_TRUE(config["peft_version"].is_string());
  EXPECT_TRUE(config["lora_alpha"].is_number_integer());
}

TEST_F(StoreTest, TensorsHaveTheKeysOfPeft) {
  save(path());
  const Safetensors file = Safetensors::open(path() + "/adapter_model.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensors().size(), 8 + head_of(*network_).size());
  for (const Parameter* p : adapter_->parameters())
    expect_same_bits(file.tensor(p->name).view(), std::as_const(p->value).view());
  for (const Parameter* p : head_of(*network_))
    expect_same_bits(file.tensor("base_model.model." + p->name).view(),
                     std::as_const(p->value).view());
}

TEST_F(StoreTest, EverythingComesBack) {
  save(path());
  const LoadedBundle loaded = load_adapter(path());
  const AdapterBundle& b = loaded.bundle;
  EXPECT_TRUE(loaded.recorded);
  EXPECT_EQ(b.base_path, bundle_.base_path);
  EXPECT_EQ(b.base_fingerprint, bundle_.base_fingerprint);
  EXPECT_EQ(b.base_kind, "scgpt");
  EXPECT_TRUE(b.has_adapter);
  EXPECT_EQ(b.options.type, "lora");
  EXPECT_EQ(b.options.rank, 2);
  EXPECT_EQ(b.options.alpha, 5);
  EXPECT_EQ(b.options.targets, (std::vector<std::string>{"v", "q"}));
  EXPECT_EQ(b.options.first_layer, 0);
  EXPECT_EQ(b.options.last_layer, 1);
  EXPECT_EQ(b.labels, bundle_.labels);
  EXPECT_EQ(b.label_counts, bundle_.label_counts);
  EXPECT_EQ(b.labels_extra, bundle_.labels_extra);
  EXPECT_EQ(b.preprocess, bundle_.preprocess);
  EXPECT_EQ(b.metrics, bundle_.metrics);
  EXPECT_EQ(b.provenance, bundle_.provenance);
  EXPECT_EQ(b.genes, bundle_.genes);
  ASSERT_EQ(b.baselines.size(), 1u);
  EXPECT_EQ(b.baselines[0].name, "centroids");
  expect_same_bits(b.baselines[0].tensor, std::as_const(baseline_).view());

  const auto other = tiny_network(9);
  const auto again = attach_adapter(loaded, *other, bundle_.base_fingerprint, false);
  for (size_t i = 0; i < again->parameters().size(); ++i)
    expect_same_bits(again->parameters()[i]->value.view(), adapter_->parameters()[i]->value.view());
  for (size_t i = 0; i < head_of(*other).size(); ++i)
    expect_same_bits(head_of(*other)[i]->value.view(), head_of(*network_)[i]->value.view());
}

TEST_F(StoreTest, TheSameContentIsTheSameBytes) {
  save(path());
  save(folder_ / "b");
  for (const auto& entry : fs::directory_iterator(path())) {
    const std::string name = entry.path().filename().string();
    if (name == "README.md" || name == "MANIFEST.sha256") continue;  // hold the folder's name
    EXPECT_EQ(read_text(path() + "/" + name), read_text(folder_ / ("b/" + name))) << name;
  }
}

TEST_F(StoreTest, ThinBundleWritesNoEmptyFiles) {
  bundle_ = {};
  save(path());
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path()))
    names.push_back(entry.path().filename().string());
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("adapter_config.json", "README.md",
                                                     "adapter_model.safetensors", "provenance.json",
                                                     "MANIFEST.sha256"));
  const LoadedBundle loaded = load_adapter(path());
  EXPECT_TRUE(loaded.bundle.labels.empty());
  EXPECT_TRUE(loaded.bundle.metrics.is_null());
  // Without a fingerprint nobody can say whether the base is the right one.
  expect_model_error("E-ADAPTER-BASE", "unknown",
                     [&] { attach_adapter(loaded, *network_, std::string(64, 'a'), false); });
}

TEST_F(StoreTest, HeadAloneAndWholeModel) {
  const auto all = network_->parameters().all();
  save_adapter(path(), bundle_, nullptr, *network_, all, Overwrite::refuse);
  const json config = read_json(path() + "/adapter_config.json", FileKind::model);
  EXPECT_EQ(config["peft_type"], "SCGRAFT_MODULES");
  EXPECT_EQ(config["modules_to_save"],
            (json{"cls_decoder", "encoder", "transformer_encoder", "value_encoder"}));
  const auto other = tiny_network(9);
  TinyBatch cells;
  encoded(*other, cells.batch());  // packs the old weights
  const LoadedBundle loaded = load_adapter(path());
  EXPECT_FALSE(loaded.bundle.has_adapter);
  EXPECT_EQ(attach_adapter(loaded, *other, bundle_.base_fingerprint, false), nullptr);
  EXPECT_EQ(fingerprint(*other), fingerprint(*network_));
  for (const Parameter* p : other->parameters().all()) EXPECT_FALSE(p->trainable()) << p->name;
  expect_same_bits(encoded(*other, cells.batch()).view(), encoded(*network_, cells.batch()).view());

  const auto head = head_of(*network_);
  save_adapter(folder_ / "head", bundle_, nullptr, *network_, head, Overwrite::refuse);
  EXPECT_EQ(load_adapter(folder_ / "head").saved.size(), head.size());
}

TEST_F(StoreTest, SingleTrainedTensorsAreNoModules) {
  const std::string name = "transformer_encoder.layers.0.self_attn.in_proj_bias";
  Parameter* bias = network_->parameters().find(name);
  ASSERT_NE(bias, nullptr);
  set_values({bias}, 1);
  const std::vector<Parameter*> saved = {bias};
  save_adapter(path(), bundle_, adapter_.get(), *network_, saved, Overwrite::refuse);
  EXPECT_TRUE(
      read_json(path() + "/adapter_config.json", FileKind::model)["modules_to_save"].is_null());
  const auto other = tiny_network(1);
  attach_adapter(load_adapter(path()), *other, bundle_.base_fingerprint, false);
  expect_same_bits(other->parameters().find(name)->value.view(), bias->value.view());
}

TEST_F(StoreTest, AnExistingFolderStaysUnlessReplaced) {
  save(path());
  const std::string before = read_text(path() + "/provenance.json");
  bundle_.provenance = {{"seed", 8}};
  expect_file_error(ExitCode::usage, "E-EXISTS", "exists already", [&] { save(path()); });
  EXPECT_EQ(read_text(path() + "/provenance.json"), before);
  save(path(), Overwrite::replace);
  EXPECT_EQ(load_adapter(path()).bundle.provenance, bundle_.provenance);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 1)
      << "something left behind";

  // What is not ours is never replaced, and an empty folder is as good as none.
  fs::create_directory(folder_ / "mine");
  save(folder_ / "mine");
  fs::create_directory(folder_ / "precious");
  put(folder_ / "precious/thesis.txt", "text");
  expect_file_error(ExitCode::usage, "E-OUTPUT", "no folder that this program wrote",
                    [&] { save(folder_ / "precious", Overwrite::replace); });
  EXPECT_EQ(read_text(folder_ / "precious/thesis.txt"), "text");
}

TEST_F(StoreTest, AFailureLeavesNothingBehind) {
  bundle_.labels = {"a", "a"};
  bundle_.label_counts = {};
  expect_model_error("E-ADAPTER", "\"a\" twice", [&] { save(path()); });
  bundle_.labels = {"a\nb"};
  expect_model_error("E-ADAPTER", "a\\nb", [&] { save(path()); });
  bundle_.labels = {"a", "b"};
  bundle_.label_counts = {1};
  expect_model_error("E-ADAPTER", "2 classes and 1", [&] { save(path()); });
  bundle_.label_counts = {};
  bundle_.baselines.push_back(bundle_.baselines[0]);  // found while writing
  EXPECT_THROW(save(path()), Error);
  EXPECT_TRUE(fs::is_empty(folder_.path()));
  expect_file_error(ExitCode::storage, "E-NO-FOLDER", "nowhere",
                    [&] { save(folder_ / "nowhere/a"); });
}

TEST_F(StoreTest, HalfPrecisionTensorsAreWidened) {
  save(path());
  const std::string key =
      "base_model.model.transformer_encoder.layers.0.self_attn.v_proj.lora_A.weight";
  rewrite_tensors([&](std::map<std::string, Tensor>& t) {
    t[key] = tensor_of({2, 16}, DType::bf16, std::vector<double>(32, 0.5));
  });
  reseal();
  const auto again =
      attach_adapter(load_adapter(path()), *network_, bundle_.base_fingerprint, false);
  for (const Parameter* p : again->parameters())
    if (p->name == key) {
      EXPECT_EQ(values_of(p->value.view()), std::vector<double>(32, 0.5));
    }
}

// What PEFT's save_pretrained leaves: the two files, short names of targets, no word of ours.
TEST_F(StoreTest, FolderOfPeftIsReadByItsTensors) {
  AdapterOptions options;
  options.rank = 4;
  options.alpha = 8;
  options.targets = {"q", "ffn_out"};
  options.first_layer = 1;
  const auto adapter = make_adapter(options, *network_, 3);
  set_values(adapter->parameters(), 2);
  std::vector<NamedTensor> tensors;
  for (const Parameter* p : adapter->parameters())
    tensors.push_back({p->name, std::as_const(p->value).view()});
  fs::create_directory(path());
  write_safetensors(path() + "/adapter_model.safetensors", tensors, {}, Overwrite::refuse);
  put(path() + "/adapter_config.json",
      R"({"peft_type": "LORA", "target_modules": ["q_proj", "linear2"], "r": 4, "lora_alpha": 4,
          "use_rslora": true, "layers_to_transform": [1], "auto_mapping": null})");
  const LoadedBundle loaded = load_adapter(path());
  EXPECT_FALSE(loaded.recorded);
  expect_model_error("E-ADAPTER-BASE", "unknown",
                     [&] { attach_adapter(loaded, *network_, "abc", false); });
  TinyBatch cells;
  const auto other = tiny_network();
  const auto again = attach_adapter(loaded, *other, "abc", true);
  adapter->attach(*network_);
  EXPECT_EQ(again->options().alpha, 8);  // 4 / sqrt(4) = 8 / 4
  EXPECT_EQ(again->options().first_layer, 1);
  expect_same_bits(encoded(*other, cells.batch()).view(), encoded(*network_, cells.batch()).view());

  // One projection of one layer is missing.
  adapter->detach(*network_);
  tensors.resize(2);
  const auto all = make_adapter({.type = "lora", .rank = 4, .targets = {"q", "v"}}, *network_, 1);
  tensors.clear();
  for (const Parameter* p : all->parameters())
    if (p->name.find("1.self_attn.v_proj.lora_B") == std::string::npos)
      tensors.push_back({p->name, std::as_const(p->value).view()});
  write_safetensors(path() + "/adapter_model.safetensors", tensors, {}, Overwrite::replace);
  expect_model_error("E-ADAPTER-TENSOR", "v_proj.lora_B.weight is missing",
                     [&] { attach_adapter(load_adapter(path()), *network_, "abc", true); });
  tensors.clear();
  write_safetensors(path() + "/adapter_model.safetensors", tensors, {}, Overwrite::replace);
  expect_model_error("E-ADAPTER-TENSOR", "no tensor for any place",
                     [&] { attach_adapter(load_adapter(path()), *network_, "abc", true); });
}

// Saved in PEFT's words, and read from what PEFT's save_pretrained leaves.
TEST_F(StoreTest, HraIsWrittenAndReadAsPeftDoes) {
  AdapterOptions options;
  options.type = "hra";
  options.rank = 4;
  options.targets = {"k", "ffn_out"};
  options.first_layer = 1;
  adapter_ = make_adapter(options, *network_, 3);
  set_values(adapter_->parameters(), 2);
  save(path());
  const json config = read_json(path() + "/adapter_config.json", FileKind::model);
  EXPECT_EQ(config["peft_type"], "HRA");
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["apply_GS"], false);
  EXPECT_EQ(config["bias"], "none");
  EXPECT_EQ(config["target_modules"], json({"transformer_encoder.layers.1.self_attn.k_proj",
                                            "transformer_encoder.layers.1.linear2"}));
  EXPECT_FALSE(config.contains("lora_alpha"));
  EXPECT_THAT(read_text(path() + "/README.md"), ::testing::HasSubstr("HRA of 4 reflections"));
  rewrite("adapter_config.json", [](json& c) { c["r"] = 6; });
  reseal();
  expect_model_error("E-ADAPTER", "different adapters", [&] { load_adapter(path()); });

  const std::string theirs = folder_ / "peft";
  std::vector<NamedTensor> tensors;
  for (const Parameter* p : adapter_->parameters())
    tensors.push_back({p->name, std::as_const(p->value).view()});
  fs::create_directory(theirs);
  write_safetensors(theirs + "/adapter_model.safetensors", tensors, {}, Overwrite::refuse);
  const std::string text =
      R"({"peft_type": "HRA", "target_modules": ["k_proj", "linear2"], "r": 4, "apply_GS": false,
          "init_weights": true, "bias": "none", "layers_to_transform": [1]})";
  put(theirs + "/adapter_config.json", text);
  const auto other = tiny_network();
  const auto again = attach_adapter(load_adapter(theirs), *other, "abc", true);
  EXPECT_EQ(again->kind(), "hra");
  EXPECT_EQ(again->options().first_layer, 1);
  adapter_->attach(*network_);
  const TinyBatch cells;
  expect_same_bits(encoded(*other, cells.batch()).view(), encoded(*network_, cells.batch()).view());
  adapter_->detach(*network_);

  std::string orthogonal = text;
  orthogonal.replace(orthogonal.find("false"), 5, "true");
  put(theirs + "/adapter_config.json", orthogonal);
  expect_model_error("E-ADAPTER", "apply_GS", [&] { load_adapter(theirs); });
}

// The same for OFT: r blocks, or blocks of a width.
TEST_F(StoreTest, OftIsWrittenAndReadAsPeftDoes) {
  for (const bool by_width : {false, true}) {
    const std::string name = by_width ? "width" : "blocks";
    AdapterOptions options;
    options.type = "oft";
    options.blocks = 2;
    options.block_size = by_width ? 4 : 0;
    options.constraint = by_width ? 0.25 : 0;
    options.targets = {"k", "ffn_out"};
    options.first_layer = 1;
    adapter_ = make_adapter(options, *network_, 3);
    set_values(adapter_->parameters(), 2);
    const std::string ours = folder_ / name;
    save(ours);
    const json config = read_json(ours + "/adapter_config.json", FileKind::model);
    EXPECT_EQ(config["peft_type"], "OFT");
    EXPECT_EQ(config["r"], by_width ? 0 : 2);
    EXPECT_EQ(config["oft_block_size"], by_width ? 4 : 0);
    EXPECT_EQ(config["coft"], by_width);
    EXPECT_EQ(config["eps"], by_width ? 0.25 : 6e-5);
    EXPECT_EQ(config["use_cayley_neumann"], false);
    EXPECT_EQ(config["block_share"], false);
    EXPECT_EQ(config["target_modules"], json({"transformer_encoder.layers.1.self_attn.k_proj",
                                              "transformer_encoder.layers.1.linear2"}));
    EXPECT_THAT(read_text(ours + "/README.md"),
                ::testing::HasSubstr(by_width ? "OFT with blocks of 4" : "OFT with 2 blocks"));

    const std::string theirs = folder_ / (name + "_peft");
    std::vector<NamedTensor> tensors;
    for (const Parameter* p : adapter_->parameters())
      tensors.push_back({p->name, std::as_const(p->value).view()});
    fs::create_directory(theirs);
    write_safetensors(theirs + "/adapter_model.safetensors", tensors, {}, Overwrite::refuse);
    const json good = {{"peft_type", "OFT"},    {"target_modules", {"k_proj", "linear2"}},
                       {"r", by_width ? 0 : 2}, {"oft_block_size", by_width ? 4 : 0},
                       {"coft", by_width},      {"eps", by_width ? 0.25 : 6e-5},
                       {"block_share", false},  {"use_cayley_neumann", false},
                       {"bias", "none"},        {"layers_to_transform", {1}}};
    put(theirs + "/adapter_config.json", good.dump());
    const auto other = tiny_network();
    const auto again = attach_adapter(load_adapter(theirs), *other, "abc", true);
    EXPECT_EQ(again->kind(), "oft");
    EXPECT_EQ(again->options().first_layer, 1);
    adapter_->attach(*network_);
    const TinyBatch cells;
    expect_same_bits(encoded(*other, cells.batch()).view(),
                     encoded(*network_, cells.batch()).view());
    adapter_->detach(*network_);

    const auto refused = [&](const char* key, const json& value, const char* part) {
      json wrong = good;
      wrong[key] = value;
      put(theirs + "/adapter_config.json", wrong.dump());
      expect_model_error("E-ADAPTER", part, [&] { load_adapter(theirs); });
    };
    refused("use_cayley_neumann", true, "use_cayley_neumann");
    refused("block_share", true, "block_share");
    refused(by_width ? "r" : "oft_block_size", 2, "one of r and oft_block_size");
    refused("oft_block_size", nullptr, "PEFT before 0.14");
    refused("oft_block_size", 1.5, "a whole number");

    json changed = config;
    changed[by_width ? "oft_block_size" : "r"] = 8;
    write_json(ours + "/adapter_config.json", changed, Overwrite::replace);
    write_manifest(ours);
    expect_model_error("E-ADAPTER", "different adapters", [&] { load_adapter(ours); });
  }
}

// Columns of one tensor: keys and values of the first layer, keys and values of the second.
TEST_F(StoreTest, PrefixTuningIsWrittenAndReadAsPeftDoes) {
  AdapterOptions options;
  options.type = "prefix_tuning";
  options.tokens = 3;
  adapter_ = make_adapter(options, *network_, 3);
  set_values(adapter_->parameters(), 2);
  save(path());
  const json config = read_json(path() + "/adapter_config.json", FileKind::model);
  EXPECT_EQ(config["peft_type"], "PREFIX_TUNING");
  EXPECT_EQ(config["task_type"], "SEQ_CLS");
  EXPECT_EQ(config["num_virtual_tokens"], 3);
  EXPECT_EQ(config["token_dim"], 16);
  EXPECT_EQ(config["num_layers"], 2);
  EXPECT_EQ(config["num_attention_heads"], network_->heads());
  EXPECT_EQ(config["num_transformer_submodules"], 1);
  EXPECT_EQ(config["prefix_projection"], false);
  const Safetensors file = Safetensors::open(path() + "/adapter_model.safetensors");
  const Tensor& flat = file.tensor("prompt_embeddings");
  ASSERT_EQ(flat.shape(), (Shape{3, 2 * 2 * 16}));
  for (const TensorInfo& info : file.tensors())
    EXPECT_TRUE(info.name == "prompt_embeddings" || info.name.starts_with("base_model.cls_decoder"))
        << info.name;
  const std::vector<Parameter*> parameters = adapter_->parameters();
  for (size_t p = 0; p < 4; ++p) {
    EXPECT_TRUE(parameters[p]->name.ends_with(p % 2 == 0 ? ".prefix_keys" : ".prefix_values"));
    for (int64_t t = 0; t < 3; ++t)
      for (int64_t c = 0; c < 16; ++c)
        EXPECT_EQ(flat.as<float>()[t * 64 + static_cast<int64_t>(p) * 16 + c],
                  parameters[p]->value.as<float>()[t * 16 + c]);
  }

  const std::string theirs = folder_ / "peft";
  fs::create_directory(theirs);
  write_safetensors(theirs + "/adapter_model.safetensors",
                    {{"prompt_embeddings", std::as_const(flat).view()}}, {}, Overwrite::refuse);
  const json good = {{"peft_type", "PREFIX_TUNING"},
                     {"num_virtual_tokens", 3},
                     {"token_dim", 16},
                     {"num_layers", 2},
                     {"prefix_projection", false},
                     {"num_transformer_submodules", 1}};
  put(theirs + "/adapter_config.json", good.dump());
  const auto other = tiny_network();
  const auto again = attach_adapter(load_adapter(theirs), *other, "abc", true);
  EXPECT_EQ(again->kind(), "prefix_tuning");
  adapter_->attach(*network_);
  const TinyBatch cells;
  expect_same_bits(encoded(*other, cells.batch()).view(), encoded(*network_, cells.batch()).view());
  adapter_->detach(*network_);
  for (const auto& [key, value] : std::vector<std::pair<const char*, int>>{
           {"num_virtual_tokens", 65}, {"num_transformer_submodules", 2}}) {
    json wrong = good;
    wrong[key] = value;
    put(theirs + "/adapter_config.json", wrong.dump());
    expect_model_error("E-ADAPTER", key, [&] { load_adapter(theirs); });
  }
  json fewer = good;
  fewer["num_virtual_tokens"] = 2;
  put(theirs + "/adapter_config.json", fewer.dump());
  expect_model_error("E-ADAPTER-TENSOR", "prompt_embeddings is [3, 64], the backbone needs [2, 64]",
                     [&] { attach_adapter(load_adapter(theirs), *tiny_network(), "abc", true); });

  // In one layer it is a kind that PEFT does not have.
  options.first_layer = 1;
  adapter_ = make_adapter(options, *network_, 3);
  save(folder_ / "one");
  EXPECT_EQ(read_json(folder_ / "one/adapter_config.json", FileKind::model)["peft_type"],
            "SCGRAFT_PREFIX_TUNING");
  EXPECT_EQ(attach_adapter(load_adapter(folder_ / "one"), *tiny_network(), "abc", true)->kind(),
            "prefix_tuning");
}

TEST_F(StoreTest, ModelCardTellsWhatItIs) {
  save(path());
  const std::string card = read_text(path() + "/README.md");
  for (const char* part :
       {"---\nlibrary_name: scgraft\n", "base_model: \"models/tiny \\\"one\\\"\"", "LoRA of rank 2",
        "| T cell \\| CD8+ | 20 |", "| accuracy | 0.75 |"})
    EXPECT_THAT(card, ::testing::HasSubstr(part));
}

// The weights of a mapped checkpoint cannot be written; trained ones get memory of their own.
TEST_F(StoreTest, MappedWeightsAreReplacedNotWritten) {
  const auto all = network_->parameters().all();
  save_adapter(path(), bundle_, nullptr, *network_, all, Overwrite::refuse);
  std::vector<Tensor> mapped;
  const ParameterSource fresh = scgpt_initialiser(9);
  const ParameterSource shared = [&](const std::string& name, const Shape& shape) {
    mapped.push_back(fresh(name, shape));
    return mapped.back().share();
  };
  ScgptNetwork other(network_->config(), {.decoder = false, .mvc = false, .classes = 3}, shared);
  std::vector<Tensor> before;
  for (const Tensor& t : mapped) before.push_back(t.clone());
  attach_adapter(load_adapter(path()), other, bundle_.base_fingerprint, false);
  EXPECT_EQ(fingerprint(other), fingerprint(*network_));
  for (size_t i = 0; i < mapped.size(); ++i)
    expect_same_bits(std::as_const(mapped[i]).view(), std::as_const(before[i]).view());
}

}  // namespace
}  // namespace scgraft
