// SPDX-License-Identifier: Apache-2.0
// convert, adapter and trace.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "adapters/scpeft.h"
#include "io/checkpoint.h"
#include "io/npz.h"
#include "model/scgpt/load.h"
#include "tests/adapters/store_fixture.h"
#include "tests/app/program.h"
#include "training/trace.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

class ModelVerbsTest : public StoreTest {
 protected:
  // The fixture's network as a folder, with an adapter made for it under path().
  ModelVerbsTest() {
    model_.config = network_->config();
    for (int i = 0; i < 17; ++i) model_.vocabulary.append(cat("GENE", i));
    model_.vocabulary.append_specials();
    model_.network = tiny_network();
    std::filesystem::create_directory(base());
    save_scgpt(base(), model_);
    bundle_.base_path = base();
    bundle_.base_fingerprint = load_scgpt(base()).fingerprint;
    save(path());
  }
  std::string base() const { return folder_ / "base"; }
  std::string out() const { return folder_ / "out"; }

  ScgptModel model_;
};

void expect_same_parameters(ScgptNetwork& got, ScgptNetwork& want) {
  ASSERT_EQ(got.parameters().all().size(), want.parameters().all().size());
  for (const Parameter* p : want.parameters().all()) {
    const Parameter* q = got.parameters().find(p->name);
    ASSERT_NE(q, nullptr) << p->name;
    expect_same_bits(q->value.view(), p->value.view());
  }
}

TEST_F(ModelVerbsTest, ConvertKeepsEveryBitOfAFolder) {
  const Outcome run = run_here({"convert", base(), "-o", out(), "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.result()["fingerprint"], load_scgpt(base()).fingerprint);
  EXPECT_GE(run.json()["outputs"].size(), 3U);
  expect_same_parameters(*load_scgpt(out()).network, *model_.network);
  EXPECT_EQ(run_here({"convert", base(), "-o", out()}).code, 2) << "overwrote a folder";
  EXPECT_EQ(run_here({"convert", base(), "-o", out(), "--force"}).code, 0);
  EXPECT_EQ(run_here({"convert", folder_ / "none", "-o", out()}).code, 10);
}

TEST_F(ModelVerbsTest, ConvertTurnsPyTorchFilesIntoSafetensors) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base/best_model.pt");
  const std::string file = shared_path("golden/scgpt_base/best_model.pt");
  const std::string made = folder_ / "made.safetensors";
  ASSERT_EQ(run_here({"convert", file, "-o", made}).code, 0);
  const Checkpoint before = open_checkpoint(file);
  const Checkpoint after = open_checkpoint(made);
  EXPECT_EQ(before.fingerprint(), after.fingerprint());
  EXPECT_EQ(before.tensors().size(), after.tensors().size());
}

TEST_F(ModelVerbsTest, ShowAndInspectSayTheSameOfAnAdapter) {
  const Outcome shown = run_here({"adapter", "show", path(), "--json"});
  ASSERT_EQ(shown.code, 0) << shown.err;
  EXPECT_EQ(shown.json()["schema"], "scgraft/adapter-show/1");
  EXPECT_EQ(shown.result()["type"], "lora");
  EXPECT_EQ(shown.result()["options"]["r"], 2);
  EXPECT_EQ(shown.result()["labels"].size(), 3U);
  EXPECT_EQ(shown.result()["base"]["fingerprint"], bundle_.base_fingerprint);
  EXPECT_EQ(run_here({"inspect", path(), "--json"}).result(), shown.result());
}

TEST_F(ModelVerbsTest, VerifyFindsADamagedFile) {
  const Outcome good = run_here({"adapter", "verify", path(), "--json"});
  ASSERT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(good.result()["intact"], true);
  const std::string file = path() + "/adapter_model.safetensors";
  std::string bytes = read_text(file);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  put(file, bytes);
  const Outcome bad = run_here({"adapter", "verify", path()});
  EXPECT_EQ(bad.code, 11);
  EXPECT_THAT(bad.err, HasSubstr("E-ADAPTER-DAMAGED"));
  EXPECT_THAT(bad.err, HasSubstr("adapter_model.safetensors"));
  EXPECT_EQ(run_here({"adapter", "verify", base()}).code, 11);
}

TEST_F(ModelVerbsTest, MergePutsTheAdapterIntoTheWeights) {
  const Outcome run = run_here({"adapter", "merge", path(), "-o", out(), "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  // W + alpha / r B A in the rows of q, the base's rows for k.
  const std::string module = "base_model.model.transformer_encoder.layers.0.self_attn.q_proj.";
  const auto values = [&](const std::string& name) {
    for (const Parameter* p : adapter_->parameters())
      if (p->name == module + name) return values_of(p->value.view());
    return std::vector<double>();
  };
  const std::vector<double> a = values("lora_A.weight");
  const std::vector<double> b = values("lora_B.weight");
  ASSERT_EQ(a.size(), 2U * 16U);
  const std::string weight = "transformer_encoder.layers.0.self_attn.in_proj_weight";
  const ScgptModel merged = load_scgpt(out());
  std::vector<double> want = values_of(model_.network->parameters().find(weight)->value.view());
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 16; ++column)
      for (size_t r = 0; r < 2; ++r)
        want[row * 16 + column] += 5.0 / 2 * b[row * 2 + r] * a[r * 16 + column];
  const Parameter* got = merged.network->parameters().find(weight);
  const std::vector<double> all = values_of(got->value.view());
  const Tensor q = tensor_of({32, 16}, DType::f32, {all.begin(), all.begin() + 32 * 16});
  expect_close(q.view(), std::vector<double>(want.begin(), want.begin() + 32 * 16), 3);
  for (const Parameter* p : head_of(*network_))
    expect_same_bits(merged.network->parameters().find(p->name)->value.view(), p->value.view());
}

TEST_F(ModelVerbsTest, MergeRefusesAnotherBase) {
  model_.network = tiny_network(9);
  const std::string other = folder_ / "other";
  std::filesystem::create_directory(other);
  save_scgpt(other, model_);
  const Outcome refused = run_here({"adapter", "merge", path(), "--model", other, "-o", out()});
  EXPECT_EQ(refused.code, 11);
  EXPECT_THAT(refused.err, HasSubstr("E-ADAPTER-BASE"));
  EXPECT_FALSE(std::filesystem::exists(out()));
  const Outcome forced = run_here({"adapter", "merge", path(), "--model", other, "-o", out(),
                                   "--allow-base-mismatch", "--json"});
  EXPECT_EQ(forced.code, 0);
  EXPECT_EQ(forced.json()["warnings"][0]["code"], "W-ADAPTER-BASE");
}

TEST_F(ModelVerbsTest, ListNamesWhatIsThereAndWhatIsDamaged) {
  const std::string runs = folder_ / "runs";
  for (const char* run : {"one", "two"}) {
    std::filesystem::create_directories(runs + "/" + run);
    save(runs + "/" + run + "/adapter");
  }
  std::string bytes = read_text(runs + "/two/adapter/labels.json");
  put(runs + "/two/adapter/labels.json", bytes + " ");
  const Outcome run = run_here({"adapter", "list", runs, "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const nlohmann::json adapters = run.result()["adapters"];
  ASSERT_EQ(adapters.size(), 2U);
  EXPECT_EQ(adapters[0]["path"], runs + "/one/adapter");
  EXPECT_EQ(adapters[0]["type"], "lora");
  EXPECT_EQ(adapters[0]["labels"].size(), 3U);
  EXPECT_EQ(adapters[0]["base"]["fingerprint"], bundle_.base_fingerprint);
  EXPECT_EQ(adapters[1]["error"]["code"], "E-ADAPTER-DAMAGED");
  EXPECT_THAT(run_here({"adapter", "list", runs}).out, HasSubstr("E-ADAPTER-DAMAGED"));
  std::filesystem::create_directory(folder_ / "none");
  EXPECT_EQ(run_here({"adapter", "list", folder_ / "none"}).out, "no adapter\n");
  EXPECT_EQ(run_here({"adapter", "list", folder_ / "nowhere"}).code, 10);
}

TEST_F(ModelVerbsTest, DiffTellsSettingsAndTensorsApart) {
  const Outcome same = run_here({"adapter", "diff", path(), path(), "--json"});
  ASSERT_EQ(same.code, 0) << same.err;
  EXPECT_EQ(same.result()["same"], true);
  const std::string other = folder_ / "other";
  bundle_.labels[1] = "NK cell";
  Parameter& moved = *adapter_->parameters()[1];
  for (int64_t i = 0; i < moved.value.numel(); ++i) moved.value.as<float>()[i] *= 1.25f;
  save(other);
  const Outcome run = run_here({"adapter", "diff", other, path(), "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.result()["same"], false);
  ASSERT_EQ(run.result()["settings"].size(), 1U);
  EXPECT_EQ(run.result()["settings"][0]["name"], "labels");
  int different = 0;
  const nlohmann::json tensors = run.result()["tensors"];
  for (const nlohmann::json& tensor : tensors) {
    if (tensor["state"] == "same") continue;
    ++different;
    EXPECT_EQ(tensor["name"], moved.name);
    EXPECT_NEAR(tensor["relative"].get<double>(), 0.25, 1e-6);
    EXPECT_NEAR(tensor["cosine"].get<double>(), 1, 1e-6);
  }
  EXPECT_EQ(different, 1);
  EXPECT_EQ(run_here({"adapter", "diff", path(), base()}).code, 11);
}

// From a checkpoint of scPEFT to an adapter that the base takes.
TEST_F(ModelVerbsTest, ImportMakesAnAdapterOfAWholeModel) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_lora");
  const std::string theirs = shared_path("golden/scpeft_scgpt_lora");
  const std::string frozen = folder_ / "frozen";
  std::filesystem::create_directory(frozen);
  save_scgpt(frozen, load_scgpt(theirs, {.claims = is_scpeft_tensor}));
  const std::string file = theirs + "/model_saved_in_eval_mode.pt";
  const std::vector<std::string> command = {"adapter", "import", file, "--model",
                                            frozen,    "-o",     out()};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), command.begin(), command.end());
    return run_here(more);
  };
  const Outcome nameless = with({});
  EXPECT_EQ(nameless.code, 2);
  EXPECT_THAT(nameless.err, HasSubstr("E-LABEL-NAMES"));
  put(folder_ / "few.txt", "a\nb\n");
  EXPECT_THAT(with({"--labels", folder_ / "few.txt"}).err, HasSubstr("2 names"));
  put(folder_ / "twice.txt", "a\nb\nc\nd\na\n");
  EXPECT_THAT(with({"--labels", folder_ / "twice.txt"}).err, HasSubstr("twice"));
  put(folder_ / "names.txt", "a\nb\nc\nd\ne\n");
  const Outcome run = with({"--labels", folder_ / "names.txt", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.result()["type"], "lora");
  EXPECT_EQ(run.result()["merged"].size(), 2U);
  EXPECT_EQ(run.result()["labels"].size(), 5U);

  // The head came along, and so did the base's name.
  ScgptModel model = load_scgpt(frozen, {.new_head_classes = 5, .pretraining_heads = false});
  const auto adapter =
      attach_adapter(load_adapter(out()), *model.network, model.fingerprint, false);
  EXPECT_EQ(adapter->kind(), "lora");
  const Checkpoint whole = open_checkpoint(file);
  for (const Parameter* p : head_of(*model.network))
    expect_same_bits(p->value.view(), whole.tensor(p->name).view());

  ASSERT_EQ(run_here({"adapter", "merge", out(), "-o", folder_ / "merged"}).code, 0);
  EXPECT_EQ(run_here({"adapter", "import", file, "--model", base(), "--labels",
                      folder_ / "names.txt", "-o", folder_ / "no"})
                .code,
            11);
}

TEST(TraceVerb, WritesWhatTheLibraryComputes) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base/arrays.npz");
  const TemporaryFolder folder;
  const std::string model = shared_path("golden/scgpt_base");
  const std::string inputs = model + "/arrays.npz";
  const std::string made = folder / "out.npz";
  const std::vector<std::string> command = {"trace", "--model", model, "--inputs",
                                            inputs,  "-o",      made};
  Context ctx;
  const std::vector<std::optional<std::string>> gradients = {std::nullopt, "cls"};
  for (const std::optional<std::string>& gradient : gradients) {
    std::vector<std::string> arguments = command;
    arguments.emplace_back("--force");
    if (gradient) arguments.insert(arguments.end(), {"--grad", *gradient});
    const Outcome run = run_here(arguments);
    ASSERT_EQ(run.code, 0) << run.err;
    TraceOptions options;
    options.gradient = gradient;
    const std::map<std::string, Tensor> want =
        trace_checkpoint(ctx, model, read_npz(inputs), options);
    const std::map<std::string, Tensor> got = read_npz(made);
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [name, array] : want) expect_same_bits(got.at(name).view(), array.view());
  }
  EXPECT_EQ(run_here(command).code, 2) << "overwrote a file";
  std::vector<std::string> unknown = command;
  unknown.insert(unknown.end(), {"--force", "--grad", "other"});
  EXPECT_EQ(run_here(unknown).code, 2);
  std::vector<std::string> unnamed = command;
  unnamed.insert(unnamed.end(), {"--force", "--grad"});
  EXPECT_EQ(run_here(unnamed).code, 0);
}

// The reflections of scPEFT's packed projection are three adapters' here: their gradients together
// are the array's, as a step along it shows.
TEST(TraceVerb, SharedReflectionsHaveOneGradient) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_none");
  const std::string theirs = shared_path("golden/scpeft_scgpt_none");
  const TemporaryFolder folder;
  for (const char* name : {"args.json", "vocab.json"})
    std::filesystem::copy(theirs + "/" + name, folder / name);
  const Checkpoint frozen = open_checkpoint(theirs);
  const std::string key = "transformer_encoder.layers.1.self_attn.Wqkv.hra_u";
  const int64_t dim = frozen.info("encoder.embedding.weight").dims[1];
  Tensor u({dim, 4}, DType::f32);
  for (int64_t i = 0; i < u.numel(); ++i) u.as<float>()[i] = std::sin(static_cast<float>(3 * i));
  const auto inputs = read_npz(theirs + "/arrays.npz");
  Context ctx;
  const auto traced = [&] {
    std::vector<NamedTensor> tensors = {{key, std::as_const(u).view()}};
    for (const TensorInfo& info : frozen.tensors())
      tensors.push_back({info.name, frozen.tensor(info.name).view()});
    write_safetensors(folder / "model.safetensors", tensors, {}, Overwrite::replace);
    TraceOptions options;
    options.gradient = "";
    return trace_checkpoint(ctx, folder.path(), inputs, options);
  };
  const Tensor gradient = traced().at("grad." + key).clone();
  ASSERT_EQ(gradient.shape(), u.shape());
  double norm = 0;
  for (int64_t i = 0; i < u.numel(); ++i)
    norm += std::pow(static_cast<double>(gradient.as<float>()[i]), 2);
  norm = std::sqrt(norm);
  const auto loss_after = [&](double step) {
    const Tensor kept = u.clone();
    for (int64_t i = 0; i < u.numel(); ++i)
      u.as<float>()[i] += static_cast<float>(step / norm) * gradient.as<float>()[i];
    const double loss = traced().at("loss").converted(DType::f64).as<double>()[0];
    copy(kept.view(), u.view());
    return loss;
  };
  EXPECT_NEAR((loss_after(0.05) - loss_after(-0.05)) / 0.1, norm, 0.02 * norm);
}

}  // namespace
}  // namespace scgraft
