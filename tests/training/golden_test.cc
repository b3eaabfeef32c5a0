// SPDX-License-Identifier: Apache-2.0
// Recorded activations and gradients of the original programs against trace_checkpoint(), on every
// device of this build.
#include <filesystem>
#include <map>

#include "io/npz.h"
#include "tests/testing/op_test.h"
#include "training/trace.h"

namespace scgraft {
namespace {

using Arrays = std::map<std::string, Tensor>;

// What the recordings allow: activations 5e-6 absolute, gradients 2e-5 of the largest element.
constexpr double kActivation = 5e-6;
constexpr double kGradient = 2e-5;
constexpr double kGradientFloor = 1e-7;

std::string folder_of(const std::string& name) { return shared_path("golden/" + name); }

Arrays arrays_of(const std::string& name, const std::string& file) {
  return read_npz(folder_of(name) + "/" + file);
}

// How a case is run, and what it may differ by.
struct Mode {
  const char* name;
  bool cuda;
  DType product = DType::f32;
  double activation = kActivation;
  double gradient = kGradient;  // of the largest element

  Device device() const { return cuda ? Device::cuda() : Device::cpu(); }
};

Arrays trace(const Mode& mode, const std::string& name, std::optional<std::string> gradient = {},
             int threads = 0, bool upstream = true) {
  Context ctx(mode.device(), {.threads = threads});
  return trace_checkpoint(
      ctx, folder_of(name), arrays_of(name, "arrays.npz"),
      {.gradient = std::move(gradient), .product = mode.product, .upstream = upstream});
}

// 1 where a place [batch, seq] holds padding; [0] when the case has none.
Tensor padding_of(const Arrays& arrays) {
  const bool padding = arrays.contains("src_key_padding_mask");
  if (!padding && !arrays.contains("attention_mask")) return Tensor({0}, DType::u8);
  const Tensor& mask = arrays.at(padding ? "src_key_padding_mask" : "attention_mask");
  Tensor out(mask.shape(), DType::u8);
  const std::vector<double> values = values_of(mask.view());
  for (size_t i = 0; i < values.size(); ++i)
    out.as<uint8_t>()[i] = (values[i] != 0) == padding ? 1 : 0;
  return out;
}

// Largest difference on tokens that are not padding.
double difference(const Tensor& got, const Tensor& want, const Tensor& padding) {
  EXPECT_EQ(got.shape(), want.shape());
  if (got.shape() != want.shape()) return INFINITY;
  const auto a = values_of(got.view()), b = values_of(want.view()), pad = values_of(padding.view());
  const bool by_token = padding.rank() == 2 && want.rank() >= 2 && want.dim(0) == padding.dim(0) &&
                        want.dim(1) == padding.dim(1);
  const size_t width = by_token ? a.size() / pad.size() : 1;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (by_token && pad[i / width] != 0) continue;
    worst = std::max(worst, std::abs(a[i] - b[i]));
    if (!std::isfinite(a[i])) return INFINITY;
  }
  return worst;
}

// A loss is one number in f32, here up to a thousand: its last digit is already above 5e-6, so it
// is compared relative to its size, and so is everything where products are bf16.
double scale_of(const Mode& mode, const Tensor& want, bool relative = false) {
  if (want.rank() > 0 && mode.product == DType::f32 && !relative) return 1.0;
  double largest = 1;
  for (const double v : values_of(want.view())) largest = std::max(largest, std::abs(v));
  return largest;
}

void expect_activations(const Mode& mode, const std::string& name,
                        const std::vector<std::string>& outputs, bool relative = false) {
  const Arrays want = arrays_of(name, "arrays.npz");
  const Arrays got = trace(mode, name);
  for (const std::string& output : outputs) {
    SCOPED_TRACE(name + " " + output);
    ASSERT_TRUE(want.contains(output));
    ASSERT_TRUE(got.contains(output)) << "trace has no such activation";
    EXPECT_LE(difference(got.at(output), want.at(output), padding_of(want)),
              mode.activation * scale_of(mode, want.at(output), relative));
  }
}

// floor: what rounding makes of a gradient that is zero in exact arithmetic.
void expect_gradients(const Mode& mode, const std::string& name, const std::string& loss,
                      size_t count, double floor = kGradientFloor) {
  const Arrays want = arrays_of(name, loss.empty() ? "grads.npz" : "grads_" + loss + ".npz");
  const Arrays got = trace(mode, name, loss);
  ASSERT_EQ(want.size(), count);
  for (const auto& [parameter, gradient] : want) {
    SCOPED_TRACE(name + " " + loss + " " + parameter);
    ASSERT_TRUE(got.contains(parameter)) << "trace has no such gradient";
    ASSERT_EQ(got.at(parameter).shape(), gradient.shape());
    const auto a = values_of(got.at(parameter).view()), b = values_of(gradient.view());
    double largest = 0, worst = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(b[i]));
      worst = std::max(worst, std::abs(a[i] - b[i]));
    }
    EXPECT_LE(worst, mode.gradient * largest + floor) << "of " << largest;
  }
}

// The same where a hidden unit so near zero that a 16-bit type turns it off can be a tenth of one
// tensor's gradient: all of them together, by the length of the difference. In f32 every tensor.
void expect_gradients_together(const Mode& mode, const std::string& name, size_t count,
                               const std::string& loss = "", double floor = kGradientFloor) {
  if (mode.product == DType::f32) return expect_gradients(mode, name, loss, count, floor);
  const Arrays want = arrays_of(name, loss.empty() ? "grads.npz" : "grads_" + loss + ".npz");
  const Arrays got = trace(mode, name, loss);
  ASSERT_EQ(want.size(), count);
  double square = 0, apart = 0;
  for (const auto& [parameter, gradient] : want) {
    ASSERT_TRUE(got.contains(parameter)) << "trace has no such gradient: " << parameter;
    const auto a = values_of(got.at(parameter).view()), b = values_of(gradient.view());
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      square += b[i] * b[i];
      apart += (a[i] - b[i]) * (a[i] - b[i]);
    }
  }
  EXPECT_LE(std::sqrt(apart), mode.gradient * std::sqrt(square));
}

const std::vector<std::string> kLayers = {
    "gene_emb",   "value_emb", "layer0_in",       "layer0_attn_out", "layer0_norm1",
    "layer0_out", "layer1_in", "layer1_attn_out", "layer1_norm1",    "layer1_out"};

std::vector<std::string> with_layers(std::vector<std::string> more) {
  more.insert(more.begin(), kLayers.begin(), kLayers.end());
  return more;
}

// bf16 keeps 8 bits of a number: 3e-2 is 8 roundings in a row, gradients pass through twice as
// many.
constexpr Mode kModes[] = {
    {.name = "cpu", .cuda = false},
    {.name = "cuda", .cuda = true},
    {.name = "cuda_bf16",
     .cuda = true,
     .product = DType::bf16,
     .activation = 3e-2,
     .gradient = 5e-2},
    {.name = "cuda_f16", .cuda = true, .product = DType::f16, .activation = 4e-3, .gradient = 5e-2},
};
std::string name_of(const Mode& mode) { return mode.name; }

class Golden : public ::testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (mode().cuda && cuda_device_count() == 0)
      GTEST_SKIP() << "this machine or build has no CUDA device";
  }
  const Mode& mode() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Modes, Golden, ::testing::ValuesIn(kModes),
                         [](const auto& p) { return name_of(p.param); });

TEST_P(Golden, ScgptBaseActivations) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  expect_activations(
      mode(), "scgpt_base",
      with_layers({"transformer_output", "out_mlm_output", "out_cell_emb", "out_cls_output",
                   "out_mvc_output", "out_loss_ecs", "out_loss_cce", "loss_cls",
                   "loss_cls_weighted", "loss_mse", "loss_mvc"}));
}

TEST_P(Golden, ScgptBaseGradients) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  expect_gradients(mode(), "scgpt_base", "cls", 43);
  expect_gradients(mode(), "scgpt_base", "multi", 52);
}

TEST_P(Golden, PublishedNamesLoadAsTheSameNetwork) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_flash_named_ckpt");
  expect_activations(mode(), "scgpt_flash_named_ckpt",
                     {"out_mlm_output", "out_cell_emb", "out_mvc_output"});
}

std::vector<std::string> outputs_of(const std::string& name) {
  std::vector<std::string> outputs;
  for (const auto& [output, tensor] : arrays_of(name, "arrays.npz"))
    if (output.starts_with("layer") || output.starts_with("out_") || output.starts_with("loss") ||
        output == "gene_emb" || output == "value_emb" || output == "transformer_output")
      outputs.push_back(output);
  EXPECT_GE(outputs.size(), 5u);
  return outputs;
}

TEST_P(Golden, ScpeftLora) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_lora");
  expect_activations(mode(), "scpeft_scgpt_lora", outputs_of("scpeft_scgpt_lora"));
  expect_gradients(mode(), "scpeft_scgpt_lora", "", 16);
}

TEST_P(Golden, ScpeftBottlenecksAndPrefix) {
  for (const auto& [name, gradients] :
       std::vector<std::pair<std::string, size_t>>{{"scpeft_scgpt_encoder", 18},
                                                   {"scpeft_scgpt_token", 14},
                                                   {"scpeft_scgpt_hybrid", 22},
                                                   {"scpeft_scgpt_prefix", 12}}) {
    SCGRAFT_NEEDS_SHARED("golden/" + name);
    expect_activations(mode(), name, outputs_of(name));
    expect_gradients_together(mode(), name, gradients);
  }
}

TEST_P(Golden, ScpeftNone) {
  SCGRAFT_NEEDS_SHARED("golden/scpeft_scgpt_none");
  expect_activations(mode(), "scpeft_scgpt_none", outputs_of("scpeft_scgpt_none"));
  expect_gradients_together(mode(), "scpeft_scgpt_none", 55);
}

// Three layers, and what the cases of other styles have beside them.
std::vector<std::string> styled_outputs(std::vector<std::string> more) {
  for (const char* part : {"in", "attn_out", "norm1", "out"}) more.push_back(cat("layer2_", part));
  for (const char* output : {"out_mlm_output", "out_cell_emb", "out_cls_output"})
    more.push_back(output);
  return with_layers(std::move(more));
}

TEST_P(Golden, ScgptCategoriesAveraged) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_category_avgpool");
  expect_activations(mode(), "scgpt_category_avgpool", styled_outputs({"mvc_sum_query"}));
}

TEST_P(Golden, ScgptScalingWeightedWithBatchNorm) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_scaling_wpool_bn");
  // Rows are multiplied by values of up to 8, and grow with them.
  expect_activations(mode(), "scgpt_scaling_wpool_bn", styled_outputs({"mvc_concat_query"}), true);
}

TEST_P(Golden, ScgptPerturbation) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_generator_perturb");
  expect_activations(mode(), "scgpt_generator_perturb",
                     with_layers({"out_mlm_output", "coeff", "bias", "loss"}));
  expect_gradients_together(mode(), "scgpt_generator_perturb", 46);
}

// The same cells by genes, as the original predicts them; all of the genes are expressed in one.
TEST_P(Golden, ScgptPerturbationOfWholeCells) {
  const std::string name = "scgpt_generator_perturb";
  SCGRAFT_NEEDS_SHARED("golden/" + name);
  const Arrays recorded = arrays_of(name, "arrays.npz");
  Arrays inputs;
  const std::vector<double> src = values_of(recorded.at("src").view());
  inputs["gene_ids"] = Tensor({20}, DType::i64);
  for (size_t g = 0; g < 20; ++g)
    inputs["gene_ids"].as<int64_t>()[g] = static_cast<int64_t>(src[g]);
  inputs["gene_values"] = recorded.at("values").clone();
  inputs["pert_flags"] = recorded.at("input_pert_flags").clone();
  Context ctx(mode().device());
  for (const bool all : {false, true}) {
    const Arrays got =
        trace_checkpoint(ctx, folder_of(name), inputs,
                         {.gradient = {}, .product = mode().product, .all_genes = all});
    ASSERT_EQ(got.size(), 1u);
    const Tensor& want = recorded.at("out_mlm_output");
    EXPECT_LE(difference(got.at("pred_gene_values"), want, padding_of(recorded)),
              mode().activation * scale_of(mode(), want));
  }
  inputs["pert_flags"] = Tensor({4, 19}, DType::i64);
  expect_error("pert_flags must be [4, 20]",
               [&] { trace_checkpoint(ctx, folder_of(name), inputs, {}); });
  inputs.erase("pert_flags");
  expect_error("pert_flags", [&] { trace_checkpoint(ctx, folder_of(name), inputs, {}); });
}

// Evaluation by what the domain's batch norm collected, and training by the batch, with all losses.
TEST_P(Golden, ScgptIntegration) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_integration_dsbn");
  std::vector<std::string> outputs;
  for (const auto& [output, tensor] : arrays_of("scgpt_integration_dsbn", "arrays.npz"))
    if (output.starts_with("eval_") || output.starts_with("train_") ||
        output.starts_with("after_train_") || output.starts_with("loss_"))
      outputs.push_back(output);
  ASSERT_EQ(outputs.size(), 53u);
  expect_activations(mode(), "scgpt_integration_dsbn", outputs);
  // Batch norm takes away what all tokens have in common, so the last bias before it has no
  // gradient: what was recorded is the rounding of a loss of 1855.
  expect_gradients_together(mode(), "scgpt_integration_dsbn", 63, "total", 3e-5);
}

// What padding changes in the original (the mean over a cell) it does not change here.
TEST_P(Golden, ScgptPaddingDoesNotCountByDefault) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_category_avgpool");
  const Arrays want = arrays_of("scgpt_category_avgpool", "arrays.npz");
  const Arrays got = trace(mode(), "scgpt_category_avgpool", {}, 0, false);
  const Tensor padding = padding_of(want);
  EXPECT_LE(difference(got.at("layer2_out"), want.at("layer2_out"), padding),
            mode().activation * scale_of(mode(), want.at("layer2_out")));
  const std::vector<double> rows = values_of(got.at("layer2_out").view());
  const std::vector<double> pad = values_of(padding.view());
  const std::vector<double> cells = values_of(got.at("out_cell_emb").view());
  const size_t dim = 32, seq = pad.size() / 4;
  for (size_t b = 0; b < 4; ++b)
    for (size_t d = 0; d < dim; ++d) {
      double sum = 0, count = 0;
      for (size_t s = 0; s < seq; ++s)
        if (pad[b * seq + s] == 0) sum += rows[(b * seq + s) * dim + d], ++count;
      EXPECT_NEAR(cells[b * dim + d], sum / count, 1e-5);
    }
  if (mode().product == DType::f32) {
    EXPECT_GT(difference(got.at("out_cell_emb"), want.at("out_cell_emb"), padding), 1e-2);
  }
}

// What the traced program is meant to tell of scBERT: everything but features of the attention, its
// maps, and what was computed cell by cell.
TEST_P(Golden, ScbertBins) {
  SCGRAFT_NEEDS_SHARED("golden/scbert_pretrain");
  std::vector<std::string> outputs = {"encodings", "final_norm", "logits", "loss"};
  for (const char* layer : {"layer0", "layer1"})
    for (const char* part :
         {"_in", "_attn_prenorm", "_q", "_k", "_v", "_favor_out", "_attn_out", "_mid", "_ff_out"})
      outputs.push_back(cat(layer, part));
  expect_activations(mode(), "scbert_pretrain", outputs);
  expect_gradients_together(mode(), "scbert_pretrain", 31);
}

TEST_P(Golden, ScbertClassesOfCells) {
  SCGRAFT_NEEDS_SHARED("golden/scbert_finetune_cls");
  expect_activations(mode(), "scbert_finetune_cls",
                     {"layer0_favor_out", "layer1_mid", "final_norm", "logits", "loss"});
  expect_gradients_together(mode(), "scbert_finetune_cls", 23);
}

// Rounding to bf16 turns units of the head's relu on or off in two of the cases, and all gradients
// go through them (a tenth of theirs, where f16 is within 2e-3): there f16 speaks for the 16 bits.
TEST_P(Golden, ScpeftOnScbert) {
  for (const auto& [name, gradients] :
       std::vector<std::pair<std::string, size_t>>{{"scpeft_scbert_encoder", 40},
                                                   {"scpeft_scbert_lora", 30},
                                                   {"scpeft_scbert_prefix", 23},
                                                   {"scpeft_scbert_token", 26}}) {
    SCGRAFT_NEEDS_SHARED("golden/" + name);
    expect_activations(mode(), name,
                       {"layer0_in", "layer0_q", "layer0_favor_out", "layer1_v", "layer1_mid",
                        "encodings", "logits", "loss"});
    const bool flips = name.ends_with("encoder") || name.ends_with("prefix");
    if (!flips || mode().product != DType::bf16) expect_gradients_together(mode(), name, gradients);
  }
}

// Without the published coupling of a batch a cell is what it is alone.
TEST_P(Golden, ScbertCellsDoNotDependOnTheirBatch) {
  SCGRAFT_NEEDS_SHARED("golden/scbert_pretrain");
  const Arrays want = arrays_of("scbert_pretrain", "arrays.npz");
  const Arrays got = trace(mode(), "scbert_pretrain", {}, 0, false);
  const Arrays upstream = trace(mode(), "scbert_pretrain");
  const Tensor& alone = want.at("logits_row_by_row");
  EXPECT_LE(difference(got.at("logits"), alone, padding_of(want)),
            mode().activation * scale_of(mode(), alone));
  if (mode().product == DType::f32) {
    EXPECT_GT(difference(upstream.at("logits"), alone, padding_of(want)), 10 * kActivation);
  }
}

TEST_P(Golden, ScfoundationPredictionsAndCells) {
  SCGRAFT_NEEDS_SHARED("golden/scfoundation_mae_autobin");
  const std::string name = "scfoundation_mae_autobin";
  expect_activations(mode(), name,
                     {"cell0_token_emb", "cell0_encoder_out", "cell1_token_emb",
                      "cell1_encoder_out", "cell_embedding_all", "enc_layer0_out", "enc_layer1_out",
                      "encoder_out", "decoder_embed", "decoder_out", "norm_out", "prediction"});
  if (mode().product != DType::f32) return;
  // Without the published coupling of a batch predictions differ, and embeddings of cells do not.
  const Arrays want = arrays_of(name, "arrays.npz");
  const Arrays got = trace(mode(), name, {}, 0, false);
  EXPECT_GT(difference(got.at("prediction"), want.at("prediction"), padding_of(want)),
            10 * kActivation);
  EXPECT_LE(
      difference(got.at("cell_embedding_all"), want.at("cell_embedding_all"), padding_of(want)),
      kActivation);
}

// Padding of the batched script: its ids are a gene's number, and no token sees it.
TEST_P(Golden, ScfoundationPaddingChangesNoPrediction) {
  SCGRAFT_NEEDS_SHARED("golden/scfoundation_mae_autobin");
  const std::string name = "scfoundation_mae_autobin";
  const Arrays want = arrays_of(name, "arrays.npz");
  Arrays inputs = arrays_of(name, "arrays.npz");
  const auto widen = [&](const char* array, double padding) {
    const Tensor& t = want.at(array);
    const std::vector<double> from = values_of(t.view());
    std::vector<double> to;
    for (int64_t b = 0; b < t.dim(0); ++b) {
      to.insert(to.end(), from.begin() + b * t.dim(1), from.begin() + (b + 1) * t.dim(1));
      to.insert(to.end(), 2, padding);
    }
    inputs[array] = tensor_of({t.dim(0), t.dim(1) + 2}, DType::f32, to);
  };
  widen("encoder_data", 103);
  widen("encoder_position_gene_ids", 103);
  widen("encoder_data_padding", 1);
  Context ctx(mode().device());
  const Arrays got = trace_checkpoint(
      ctx, folder_of(name), inputs, {.gradient = {}, .product = mode().product, .upstream = true});
  EXPECT_EQ(got.at("encoder_out").dim(1), want.at("encoder_out").dim(1) + 2);
  EXPECT_LE(difference(got.at("prediction"), want.at("prediction"), padding_of(want)),
            mode().activation * scale_of(mode(), want.at("prediction")));
}

TEST(GoldenBranches, OnlyOneOfTheFileIsTaken) {
  SCGRAFT_NEEDS_SHARED("golden/scfoundation_mae_autobin");
  Context ctx;
  const std::string folder = folder_of("scfoundation_mae_autobin");
  const Arrays inputs = arrays_of("scfoundation_mae_autobin", "arrays.npz");
  TraceOptions options;
  options.branch = "cell";
  expect_error("gene/state_dict", [&] { trace_checkpoint(ctx, folder, inputs, options); });
  options.branch = "gene";
  EXPECT_TRUE(trace_checkpoint(ctx, folder, inputs, options).contains("prediction"));
  expect_error("branch=gene is for checkpoints with several networks",
               [&] { trace_checkpoint(ctx, folder_of("scgpt_base"), inputs, options); });
}

// Every recorded array but the attention maps, which are seq x seq.
std::vector<std::string> geneformer_outputs(const std::string& name) {
  std::vector<std::string> outputs;
  for (const auto& [output, tensor] : arrays_of(name, "arrays.npz"))
    if (tensor.dtype() == DType::f32 && !output.starts_with("attentions_"))
      outputs.push_back(output);
  EXPECT_GE(outputs.size(), 17u);
  return outputs;
}

class GoldenGeneformer : public Golden {
 protected:
  void expect_case(const std::string& name, size_t gradients) {
    expect_activations(mode(), name, geneformer_outputs(name));
    expect_gradients_together(mode(), name, gradients);
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, GoldenGeneformer, ::testing::ValuesIn(kModes),
                         [](const auto& p) { return name_of(p.param); });

TEST_P(GoldenGeneformer, MaskedWords) {
  SCGRAFT_NEEDS_SHARED("golden/geneformer_mlm");
  expect_case("geneformer_mlm", 42);
}
TEST_P(GoldenGeneformer, MaskedWordsBetweenClsAndEos) {
  SCGRAFT_NEEDS_SHARED("golden/geneformer_v2_special_mlm");
  expect_case("geneformer_v2_special_mlm", 42);
}
TEST_P(GoldenGeneformer, ClassesOfCells) {
  SCGRAFT_NEEDS_SHARED("golden/geneformer_seqcls");
  expect_case("geneformer_seqcls", 41);
}
TEST_P(GoldenGeneformer, ClassesOfTokens) {
  SCGRAFT_NEEDS_SHARED("golden/geneformer_tokencls");
  expect_case("geneformer_tokencls", 39);
}

TEST_P(Golden, ThreadsChangeNoBit) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base");
  const Arrays one = trace(mode(), "scgpt_base", "multi", 1);
  const Arrays two = trace(mode(), "scgpt_base", "multi", 2);
  ASSERT_EQ(one.size(), two.size());
  for (const auto& [name, tensor] : one) {
    SCOPED_TRACE(name);
    expect_same_bits(two.at(name).view(), tensor.view());
  }
}

}  // namespace
}  // namespace scgraft
