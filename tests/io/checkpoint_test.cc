// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.h"

#include "io/sha256.h"
#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

// A training state: weights under `section`, and an optimizer state with a tensor of its own.
std::string training_state(const std::string& section) {
  const std::string weights =
      pickled::dict({{"layer.weight", pickled::tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1})},
                     {"layer.bias", pickled::tensor("FloatStorage", "1", 2, 0, {2}, {1})}});
  const std::string optimizer =
      pickled::dict({{"step", pickled::tensor("FloatStorage", "2", 1, 0, {}, {})}});
  return torch_file(
      pickled::whole(pickled::dict(
          {{"epoch", pickled::integer(7)}, {section, weights}, {"optimizer_state", optimizer}})),
      {{"0", packed<float>({1, 2, 3, 4, 5, 6})},
       {"1", packed<float>({7, 8})},
       {"2", packed<float>({100})}});
}

std::string same_weights_bare() {
  return torch_file(
      pickled::whole(pickled::dict(
          {{"layer.bias", pickled::tensor("FloatStorage", "b", 2, 0, {2}, {1})},
           {"layer.weight", pickled::tensor("FloatStorage", "a", 6, 0, {2, 3}, {3, 1})}})),
      {{"a", packed<float>({1, 2, 3, 4, 5, 6})}, {"b", packed<float>({7, 8})}});
}

void write_same_weights_safetensors(const std::string& path) {
  const Tensor weight = tensor_of({2, 3}, DType::f32, {1, 2, 3, 4, 5, 6});
  const Tensor bias = tensor_of({2}, DType::f32, {7, 8});
  write_safetensors(path, {{"layer.weight", weight.view()}, {"layer.bias", bias.view()}},
                    {{"made_by", "test"}}, Overwrite::replace);
}

TEST(Checkpoint, FindsTheWeightsInATrainingState) {
  TemporaryFolder folder;
  for (const char* section :
       {"model_state_dict", "state_dict", "model", "module", "net", "something_else"}) {
    SCOPED_TRACE(section);
    const Checkpoint file = open_checkpoint(put(folder / "a.pt", training_state(section)));
    EXPECT_EQ(file.section(), section);
    ASSERT_EQ(file.tensors().size(), 2u);
    EXPECT_EQ(file.tensors()[0].name, "layer.weight");
    EXPECT_EQ(file.info("layer.weight").dims_text(), "[2, 3]");
    EXPECT_EQ(values_of(file.tensor("layer.bias").view()), (std::vector<double>{7, 8}));
    EXPECT_FALSE(file.contains("step"));
    EXPECT_EQ(file.values().at("epoch"), 7);
    expect_model_error("E-TENSOR-MISSING", "\"step\" among its 2", [&] { file.tensor("step"); });
  }
  const std::string path = put(folder / "a.pt", training_state("model"));
  const Checkpoint other = open_checkpoint(path, "optimizer_state");
  EXPECT_EQ(other.tensors().size(), 1u);
  EXPECT_EQ(values_of(other.tensor("step").view()), std::vector<double>{100});
  expect_model_error("E-CHECKPOINT", "model, optimizer_state",
                     [&] { open_checkpoint(path, "weights"); });
}

TEST(Checkpoint, SeveralGroupsOfWeightsNeedAWord) {
  TemporaryFolder folder;
  const auto one = [](const char* key) {
    return pickled::dict({{"w", pickled::tensor("FloatStorage", key, 1, 0, {1}, {1})}});
  };
  const std::string path =
      put(folder / "a.pt",
          torch_file(pickled::whole(pickled::dict({{"generator", one("0")}, {"critic", one("1")}})),
                     {{"0", packed<float>({1})}, {"1", packed<float>({2})}}));
  expect_model_error("E-CHECKPOINT", "critic, generator", [&] { open_checkpoint(path); });
  EXPECT_EQ(values_of(open_checkpoint(path, "critic").tensor("w").view()), std::vector<double>{2});
}

TEST(Checkpoint, OfSeveralNetworksTheGeneOneIsTaken) {
  TemporaryFolder folder;
  const auto one = [](const char* key) {
    return pickled::dict(
        {{"state_dict",
          pickled::dict({{"model.w", pickled::tensor("FloatStorage", key, 1, 0, {1}, {1})}})}});
  };
  const std::string path =
      put(folder / "models.ckpt",
          torch_file(pickled::whole(pickled::dict({{"cell", one("0")}, {"gene", one("1")}})),
                     {{"0", packed<float>({1})}, {"1", packed<float>({2})}}));
  EXPECT_EQ(open_checkpoint(path).section(), "gene/state_dict");
  EXPECT_EQ(values_of(open_checkpoint(path).tensor("model.w").view()), std::vector<double>{2});
  EXPECT_EQ(values_of(open_checkpoint(path, "cell/state_dict").tensor("model.w").view()),
            std::vector<double>{1});
}

TEST(Checkpoint, FingerprintIsOfTheWeightsNotOfTheFile) {
  TemporaryFolder folder;
  write_same_weights_safetensors(folder / "a.safetensors");
  // Name, type and shape of each tensor by name, then its elements.
  const std::string want =
      sha256("10:layer.bias f32 [2]\n" + packed<float>({7, 8}) + "12:layer.weight f32 [2, 3]\n" +
             packed<float>({1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(open_checkpoint(folder / "a.safetensors").fingerprint(), want);
  EXPECT_EQ(open_checkpoint(put(folder / "b.pt", same_weights_bare())).fingerprint(), want);
  EXPECT_EQ(open_checkpoint(put(folder / "c.pt", training_state("model"))).fingerprint(), want);

  const auto changed = [&](const std::string& name, Shape shape, double last) {
    const Tensor weight = tensor_of(shape, DType::f32, {1, 2, 3, 4, 5, last});
    const Tensor bias = tensor_of({2}, DType::f32, {7, 8});
    write_safetensors(folder / "d.safetensors",
                      {{name, weight.view()}, {"layer.bias", bias.view()}}, {}, Overwrite::replace);
    return open_checkpoint(folder / "d.safetensors").fingerprint();
  };
  EXPECT_EQ(changed("layer.weight", {2, 3}, 6), want);
  EXPECT_NE(changed("layer.weight", {3, 2}, 6), want);
  EXPECT_NE(changed("layer.weights", {2, 3}, 6), want);
  EXPECT_NE(changed("layer.weight", {2, 3}, 6.0000005), want);
}

TEST(Checkpoint, ChoosesTheWeightsOfAFolder) {
  TemporaryFolder folder;
  expect_model_error("E-CHECKPOINT", "holds no weights", [&] { find_checkpoint(folder.path()); });
  for (const char* other : {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "a.txt",
                            ".hidden.pt", "training_args.bin"})
    put(folder / other, "x");
  expect_model_error("E-CHECKPOINT", "holds no weights", [&] { find_checkpoint(folder.path()); });
  put(folder / "epoch3.pth", "x");
  EXPECT_EQ(find_checkpoint(folder.path()), folder / "epoch3.pth");
  put(folder / "epoch4.ckpt", "x");
  expect_model_error("E-CHECKPOINT", "epoch3.pth, epoch4.ckpt",
                     [&] { find_checkpoint(folder.path()); });
  put(folder / "best_model.pt", "x");
  EXPECT_EQ(find_checkpoint(folder.path()), folder / "best_model.pt");
  put(folder / "pytorch_model.bin", "x");
  expect_model_error("E-CHECKPOINT", "best_model.pt, pytorch_model.bin",
                     [&] { find_checkpoint(folder.path()); });
  write_same_weights_safetensors(folder / "model.safetensors");
  EXPECT_EQ(find_checkpoint(folder.path()), folder / "model.safetensors");
  EXPECT_EQ(open_checkpoint(folder.path()).tensors().size(), 2u);
  EXPECT_EQ(open_checkpoint(folder.path()).values().at("made_by"), "test");
  EXPECT_THROW(find_checkpoint(folder / "nowhere"), StorageError);
}

// One of them alone would be a model with tensors missing.
TEST(Checkpoint, ShardsWithoutTheirIndexAreNoModel) {
  TemporaryFolder folder;
  write_same_weights_safetensors(folder / "model-00001-of-00002.safetensors");
  expect_model_error("E-CHECKPOINT", "in several files (model-00001-of-00002.safetensors)",
                     [&] { open_checkpoint(folder.path()); });
  write_same_weights_safetensors(folder / "model-00002-of-00002.safetensors");
  expect_model_error("E-CHECKPOINT", "not their index", [&] { open_checkpoint(folder.path()); });
  std::filesystem::remove(folder / "model-00001-of-00002.safetensors");
  std::filesystem::remove(folder / "model-00002-of-00002.safetensors");
  put(folder / "pytorch_model-00001-of-00003.bin", same_weights_bare());
  expect_model_error("E-CHECKPOINT", "pytorch_model-00001-of-00003.bin",
                     [&] { open_checkpoint(folder.path()); });
  TemporaryFolder best;
  put(best / "one-of-a-kind.pt", same_weights_bare());
  EXPECT_EQ(find_checkpoint(best.path()), best / "one-of-a-kind.pt");
}

// The first byte of a safetensors file is the low one of its header's length, and 0x80 is also how
// pickles begin. Headers are padded to a multiple of 8 bytes: one of 32 lengths has it.
TEST(Checkpoint, AnyLengthOfASafetensorsHeaderIsRead) {
  TemporaryFolder folder;
  const Tensor one = tensor_of({1}, DType::f32, {7});
  bool like_a_pickle = false;
  for (size_t length = 0; length < 300; length += 8) {
    SCOPED_TRACE(length);
    const std::string path = folder / "a.safetensors";
    write_safetensors(path, {{"x", one.view()}}, {{"note", std::string(length, 'a')}},
                      Overwrite::replace);
    like_a_pickle = like_a_pickle || read_text(path)[0] == '\x80';
    EXPECT_EQ(values_of(open_checkpoint(path).tensor("x").view()), std::vector<double>{7});
  }
  EXPECT_TRUE(like_a_pickle);
}

TEST(Checkpoint, WhatIsNoCheckpointIsSaidSo) {
  TemporaryFolder folder;
  const auto open = [&](const std::string& bytes) {
    return [&folder, bytes] { open_checkpoint(put(folder / "a.pt", bytes)); };
  };
  expect_model_error("E-CHECKPOINT", "is empty", open(""));
  expect_model_error("E-CHECKPOINT", "bare pickle", open("\x80\x04]."));
  expect_model_error("E-ZIP", "not a complete zip archive", open("PK\x03\x04"));
  expect_model_error("E-ST-HEADER", "", open("<html>404 not found</html>"));
  expect_model_error("E-FILE-MISSING", "no such file",
                     [&] { open_checkpoint(folder / "none.pt"); });
  write_same_weights_safetensors(folder / "a.safetensors");
  expect_model_error("E-CHECKPOINT", "no section \"model\"",
                     [&] { open_checkpoint(folder / "a.safetensors", "model"); });
}

// The stream that torch wrote before version 1.6.
std::string stream(const std::string& object, const std::string& keys,
                   const std::string& storages) {
  std::string out("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
  std::string machine("}");
  machine.append(pickled::text("little_endian")).append("\x88s");
  for (const std::string& part : {pickled::integer(1001), machine, object, keys})
    out += pickled::whole(part);
  return out + storages;
}
// A tensor of a whole storage; view: what an old file has at the end of a storage's name.
std::string stored(const std::string& key, int32_t count, const std::string& view = "N") {
  const std::string storage =
      pickled::tuple({pickled::text("storage"), pickled::global("torch", "FloatStorage"),
                      pickled::text(key), pickled::text("cpu"), pickled::integer(count), view})
          .append("Q");
  return pickled::global("torch._utils", "_rebuild_tensor_v2")
      .append(pickled::tuple({storage, pickled::integer(0), pickled::integers({count}),
                              pickled::integers({1}), "\x89",
                              pickled::global("collections", "OrderedDict").append(")R")}))
      .append("R");
}
std::string keys_of(const std::vector<std::string>& keys) {
  std::string out("](");
  for (const std::string& key : keys) out += pickled::text(key);
  return out.append("e");
}

TEST(Checkpoint, ReadsStreamsFromBeforeVersion16) {
  TemporaryFolder folder;
  const std::string object = pickled::dict({{"b", stored("7", 2)}, {"a", stored("5", 3)}});
  const std::string keys = keys_of({"5", "7"});
  const std::string storages =
      le<int64_t>(3) + packed<float>({1, 2, 3}) + le<int64_t>(2) + packed<float>({4, 5});
  const std::string whole = stream(object, keys, storages);
  const Checkpoint file = open_checkpoint(put(folder / "a.pth", whole));
  EXPECT_EQ(values_of(file.tensor("a").view()), (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(values_of(file.tensor("b").view()), (std::vector<double>{4, 5}));

  const auto open = [&](const std::string& bytes) {
    return [&folder, bytes] { open_checkpoint(put(folder / "b.pth", bytes)); };
  };
  expect_model_error("E-TRUNCATED", "list of storages", open(whole.substr(0, whole.size() - 1)));
  expect_model_error("E-TORCH", "3 are needed",
                     open(stream(object, keys, le<int64_t>(4) + storages.substr(8))));
  expect_model_error("E-TORCH", "storage \"7\"", open(stream(object, keys_of({"5"}), storages)));
  expect_model_error("E-TORCH", "does not know", open(stream(object, keys_of({"6"}), storages)));
  const std::string view = pickled::dict({{"a", stored("5", 3, pickled::tuple({}))}});
  expect_model_error("E-PICKLE", "view", open(stream(view, keys, storages)));
  std::string other = whole;
  other[15 + 3] = 1;  // of the protocol's number
  expect_model_error("E-TORCH", "protocol", open(other));
  for (size_t size = 15; size < whole.size(); ++size)
    EXPECT_THROW(open_checkpoint(put(folder / "b.pth", whole.substr(0, size))), ModelError) << size;
}

// Names, types, shapes and every element, as an independent reader (Python's pickle and numpy) saw
// them: the fingerprint is defined by these alone.
struct Recorded {
  const char* path;
  const char* section;
  size_t tensors;
  const char* fingerprint;
};
constexpr Recorded kRecorded[] = {
    {"golden/geneformer_mlm/model.safetensors", "", 42,
     "0948a64aaebd371362a9928acb9b092fb0ca995510f6fe3ccf2a1a836741fb35"},
    {"golden/geneformer_mlm/pytorch_model.bin", "", 45,
     "9351c64baece3113dc7f9cf5943b8dea3d46d507612c767bd7f2d9c8b3311811"},
    {"golden/geneformer_seqcls/model.safetensors", "", 41,
     "9906071f198fbe3be679d9eb0dc201cb29a9f762fc79d697671d9ef391fb94be"},
    {"golden/geneformer_seqcls/pytorch_model.bin", "", 42,
     "aeed9197b5ce705217563360521f7b0bd46c0b0c6c003b6dd825465e2719d6de"},
    {"golden/geneformer_tokencls/model.safetensors", "", 39,
     "c92d58983d86905b2bb0d48d7953f3e2d556bc9214eed62a5b60be7391a39360"},
    {"golden/geneformer_tokencls/pytorch_model.bin", "", 40,
     "368ce430f727757bd7917f7cf937f99cdbbf218909fbcb85f67017d5b5d52897"},
    {"golden/geneformer_v2_special_mlm/model.safetensors", "", 42,
     "0948a64aaebd371362a9928acb9b092fb0ca995510f6fe3ccf2a1a836741fb35"},
    {"golden/geneformer_v2_special_mlm/pytorch_model.bin", "", 45,
     "9351c64baece3113dc7f9cf5943b8dea3d46d507612c767bd7f2d9c8b3311811"},
    {"golden/scbert_finetune_cls/finetune_best.pth", "model_state_dict", 41,
     "4fa768f4cbf93928d8e6dc43a9cda67e6c5a888583e539ab2415bc78ab8480bf"},
    {"golden/scbert_pretrain/legacy_format.pth", "model_state_dict", 35,
     "c7deeb60369d5bd926f52ae0ecac8052caea0255c30e45722714c52db0e0e764"},
    {"golden/scbert_pretrain/panglao_pretrain.pth", "model_state_dict", 35,
     "c7deeb60369d5bd926f52ae0ecac8052caea0255c30e45722714c52db0e0e764"},
    {"golden/scfoundation_mae_autobin/models.ckpt", "gene/state_dict", 77,
     "cf909d579a7ee306a6d338dbb7595c240adef8f8fa95d32ad1e48f7a0af070bb"},
    {"golden/scgpt_base/best_model.pt", "", 52,
     "5c50f62486347d11093362e497ca677f9b8ccdf02e7f90ab88b620360c8dc19f"},
    {"golden/scgpt_category_avgpool/best_model.pt", "", 65,
     "3a5d6b43aaf61bdd96197418256709ecc4b8e0dafa24ae5851af7a1cfb9b6c80"},
    {"golden/scgpt_flash_layer_prenorm/layer.pt", "", 12,
     "06359c63ae5912a594f8445b0c8ef56d7853837d422a20429103c66bae316105"},
    {"golden/scgpt_flash_named_ckpt/best_model.pt", "", 43,
     "18284a8daab5baec388189f828b01dfee7314505c62177653649f460f9e589b0"},
    {"golden/scgpt_generator_perturb/best_model.pt", "", 56,
     "f425ae973f3b8e064cff1b8185e144cfc69a837bd45f23f58dda0deaa1728e3a"},
    {"golden/scgpt_integration_dsbn/best_model.pt", "", 82,
     "996430f4a39e1f646cee3640daa9976c2c0206d24d3e48e5f678ceaa9bbc4406"},
    {"golden/scgpt_scaling_wpool_bn/best_model.pt", "", 63,
     "2cac956975c7ee90748087bf9cb61153b54b8982b2f5c7872eea66600462ffdb"},
    {"golden/scpeft_scbert_encoder/model.pt", "", 77,
     "da72f3f6d43707100313e38eee28d67a0dc458e0bdb84afd8b96a9401aa5dbd0"},
    {"golden/scpeft_scbert_lora/model.pt", "", 55,
     "7fe5e62cd1656aa4fbc501122bccc51f8f3d196f734dcd056d41797693dd24c7"},
    {"golden/scpeft_scbert_prefix/model.pt", "", 42,
     "4067cde494a813bb801a4ecffba5aea52b8570df7766660a344a92aa23bf1e50"},
    {"golden/scpeft_scbert_token/model.pt", "", 45,
     "ba280bf2942f03aed4a63a61264ac2e16a015b5095dee934e60ec5cf80ea2144"},
    {"golden/scpeft_scgpt_encoder/model.pt", "", 69,
     "ac61672edc9fd668c2f3cce1d54dddfbe837ab8d23c6e777b55c6ee2c3d25d24"},
    {"golden/scpeft_scgpt_hybrid/model.pt", "", 73,
     "03bb173fde65453f0126041f58e65430272a3353c64e98a9549b51c2f558cfe9"},
    {"golden/scpeft_scgpt_lora/model.pt", "", 69,
     "1e33f33719078acdf977da5d8e86ad78f67825aea93b1bcd3cc20a786e554bec"},
    {"golden/scpeft_scgpt_lora/model_saved_in_eval_mode.pt", "", 69,
     "f49fd332115334426909f71865962b913d94c179923a4edf051e81b2c51ab295"},
    {"golden/scpeft_scgpt_none/model.pt", "", 61,
     "51bf0803468d6079f0497089b63a41167cc709f60ccfc807b54a7a40eeca672b"},
    {"golden/scpeft_scgpt_prefix/model.pt", "", 63,
     "3f02e26db32c01b4d258db3215253eeafef8f7910c3ca8d4fd83e5c5c8399fb4"},
    {"golden/scpeft_scgpt_token/model.pt", "", 65,
     "cf55f3386229b77a76d45d55650eec39e473085325478e43d7c47f91f46c7556"},
    {"data/checkpoints/scvi_saved_model.pt", "model_state_dict", 58,
     "8ffb4128fbf1896a205ff5aefb08e77a465bb282aff2a20d59c5777c4cd968d9"},
    {"data/checkpoints/scanvi_pre_logits_fix_model.pt", "model_state_dict", 68,
     "7fd42afe5e9e00c72e92e25350bc8823ae190ced91ca2be3fec9937648c5e826"},
};

TEST(Checkpoint, ReadsTheRecordedFilesBitForBit) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  for (const Recorded& want : kRecorded) {
    SCOPED_TRACE(want.path);
    ASSERT_FALSE(shared_path(want.path).empty());
    const Checkpoint file = open_checkpoint(shared_path(want.path));
    EXPECT_EQ(file.section(), want.section);
    EXPECT_EQ(file.tensors().size(), want.tensors);
    EXPECT_EQ(file.fingerprint(), want.fingerprint);
    for (const TensorInfo& info : file.tensors()) {
      if (info.dims.size() > static_cast<size_t>(Shape::kMaxRank)) continue;
      const Tensor& tensor = file.tensor(info.name);
      EXPECT_EQ(tensor.numel(), info.numel()) << info.name;
      EXPECT_EQ(tensor.dtype(), info.dtype) << info.name;
    }
  }
}

TEST(Checkpoint, NamesAndShapesOfAPublishedLayout) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  const Checkpoint file = open_checkpoint(shared_path("golden/scgpt_base"));
  EXPECT_EQ(file.info("encoder.embedding.weight").dims[1], 32);
  EXPECT_EQ(file.info("transformer_encoder.layers.1.self_attn.in_proj_weight").dims_text(),
            "[96, 32]");
  EXPECT_EQ(file.info("transformer_encoder.layers.0.linear1.weight").dims_text(), "[64, 32]");
  EXPECT_EQ(file.info("cls_decoder.out_layer.bias").dims_text(), "[5]");
  EXPECT_FALSE(file.contains("transformer_encoder.layers.2.linear1.weight"));
}

TEST(Checkpoint, SettingsBesideTheWeightsArePlainValues) {
  SCGRAFT_NEEDS_SHARED("golden/scfoundation_mae_autobin");
  const Checkpoint file =
      open_checkpoint(shared_path("golden/scfoundation_mae_autobin/models.ckpt"));
  EXPECT_TRUE(file.values().at("gene").contains("config")) << file.values().dump().substr(0, 300);
}

}  // namespace
}  // namespace scgraft
