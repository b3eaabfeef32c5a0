// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/load.h"

#include <filesystem>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/checkpoint_source.h"
#include "model/model_folder.h"

namespace scgraft {

using nlohmann::json;

namespace {

// Tensors of published files that are no part of the inference network.
bool without_use(const std::string& name) { return name == "flag_encoder.weight"; }

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

[[noreturn]] void fail(const std::string& file, const std::string& message, const char* code,
                       const std::string& hint = {}) {
  ModelError error(cat(file, ": ", message), code);
  error.set_where(file);
  error.set_hint(hint);
  throw error;
}

// Linears of a head as the file has it, the last one included.
int64_t count_linears(const CheckpointSource& tensors, const std::string& head) {
  int64_t n = 1;
  while (tensors.has(cat(head, "._decoder.", 3 * (n - 1), ".weight"))) ++n;
  return n;
}

// What args.json does not say, or cannot know.
void read_parts(const CheckpointSource& tensors, const json& args, ScgptConfig& config) {
  if (!args.contains("input_emb_style") && !tensors.has("value_encoder.linear1.weight"))
    config.value_style =
        tensors.has("value_encoder.embedding.weight") ? ValueStyle::category : ValueStyle::scaling;
  if (!args.contains("cell_emb_style"))
    config.cell_style = ScgptConfig::usual_cell_style(config.value_style);
  if (tensors.has("value_encoder.embedding.weight"))
    config.categories = tensors.rows("value_encoder.embedding.weight");
  else
    config.categories = config.n_bins + 2;
  if (tensors.has("pert_encoder.weight")) config.flags = tensors.rows("pert_encoder.weight");
  if (tensors.has("batch_encoder.embedding.weight"))
    config.batches = tensors.rows("batch_encoder.embedding.weight");
  config.batch_norm = tensors.has("bn.running_mean");
  while (tensors.has(cat("dsbn.bns.", config.domains, ".running_mean"))) ++config.domains;
  config.domain_affine = tensors.has("dsbn.bns.0.weight");
  if (tensors.has("grad_reverse_discriminator.out_layer.weight"))
    config.adversary_layers = count_linears(tensors, "grad_reverse_discriminator");
  if (tensors.has("mvc_decoder.fc1.weight"))
    config.mvc_style = tensors.columns("mvc_decoder.fc1.weight") > config.dim
                           ? MvcStyle::concat_query
                           : MvcStyle::sum_query;
}

}  // namespace

std::string canonical_scgpt_name(const std::string& name) {
  std::string out = name;
  replace(out, "self_attn._impl.", "self_attn.");
  replace(out, "self_attn.Wqkv.OFT.", "self_attn.Wqkv.");  // frozen, beside OFT of scPEFT
  replace(out, "self_attn.Wqkv.weight", "self_attn.in_proj_weight");
  replace(out, "self_attn.Wqkv.bias", "self_attn.in_proj_bias");
  return out;
}

ScgptModel load_scgpt(const std::string& folder, const ScgptLoadOptions& options) {
  namespace fs = std::filesystem;
  ScgptModel model;
  model.path = folder;
  const std::string args_file = (fs::path(folder) / "args.json").string();
  const std::string vocab_file = (fs::path(folder) / "vocab.json").string();
  for (const std::string& file : {args_file, vocab_file})
    if (!fs::exists(file))
      fail(folder,
           cat("not an scGPT checkpoint folder: ", fs::path(file).filename().string(),
               " is missing"),
           "E-MODEL-FOLDER",
           "a folder holds args.json, vocab.json and best_model.pt or model.safetensors");
  const json args = read_json(args_file, FileKind::model);
  model.config = ScgptConfig::from_args(args, args_file);
  model.vocabulary = Vocabulary::open(vocab_file);
  model.vocabulary.append_specials();
  const Checkpoint file = open_checkpoint(folder);

  // Adapter files of scPEFT hold both in_proj and Wqkv names for one tensor; either serves.
  CheckpointSource tensors(file, options.dtype, canonical_scgpt_name);
  if (!tensors.has("encoder.embedding.weight"))
    fail(file.file(), "encoder.embedding.weight is missing; this is no scGPT checkpoint",
         "E-TENSOR-MISSING");
  model.config.vocab = tensors.rows("encoder.embedding.weight");
  read_parts(tensors, args, model.config);
  model.config.check(args_file);
  if (!options.all_styles && !model.config.plain())
    fail(folder,
         "an scGPT model of another style than the published ones: continuous values, <cls> as the "
         "cell, no batch labels, no perturbations",
         "E-MODEL-STYLE", "scgraft trace runs it");
  if (model.vocabulary.size() > model.config.vocab)
    fail(vocab_file,
         cat(model.vocabulary.size(), " tokens, but the gene embedding in ", file.file(), " has ",
             model.config.vocab, " rows"),
         "E-VOCAB-SIZE", "use the vocab.json that belongs to this checkpoint");

  ScgptNetwork::Heads heads;
  heads.decoder = options.pretraining_heads && (tensors.has("decoder.fc.0.weight") ||
                                                tensors.has("decoder.coeff_decoder.fc.0.weight"));
  heads.mvc = options.pretraining_heads && tensors.has("mvc_decoder.gene2query.weight");
  heads.classes = options.new_head_classes;
  if (heads.classes == 0 && tensors.has("cls_decoder.out_layer.weight")) {
    heads.classes = tensors.rows("cls_decoder.out_layer.weight");
    model.config.cls_layers = count_linears(tensors, "cls_decoder");
  }
  heads.zeros = tensors.has("decoder.zero_logit.0.weight");
  if (tensors.has("grad_reverse_discriminator.out_layer.weight"))
    heads.adversary = tensors.rows("grad_reverse_discriminator.out_layer.weight");

  const ParameterSource fresh = scgpt_initialiser(options.seed, options.dtype);
  const ParameterSource source = [&](const std::string& name, const Shape& shape) {
    if (options.new_head_classes > 0 && name.starts_with("cls_decoder.")) return fresh(name, shape);
    return tensors.take(name, shape);
  };
  // A network with a missing tensor is never returned, and may not even come together.
  std::unique_ptr<ScgptNetwork> network;
  try {
    network = std::make_unique<ScgptNetwork>(model.config, heads, source);
  } catch (const ShapeError&) {
    tensors.check("args.json");
    throw;
  }
  tensors.check("args.json");

  model.ignored = tensors.ignored(
      [&](const std::string& name) {
        return without_use(name) ||
               (options.new_head_classes > 0 && name.starts_with("cls_decoder.")) ||
               (!options.pretraining_heads &&
                (name.starts_with("decoder.") || name.starts_with("mvc_decoder.")));
      },
      options.claims);
  model.network = std::move(network);
  model.fingerprint = file.fingerprint();
  return model;
}

void save_scgpt(const std::string& folder, const ScgptModel& model,
                const std::vector<std::string>& labels) {
  namespace fs = std::filesystem;
  auto in = [&](const char* name) { return (fs::path(folder) / name).string(); };
  std::vector<NamedTensor> tensors;
  HostCopies host;
  for (ParameterSet* set : {&model.network->parameters(), &model.network->buffers()})
    for (const Parameter* p : set->all()) tensors.push_back({p->name, host.view(p->value)});
  write_safetensors(in("model.safetensors"), std::move(tensors), {{"model_type", "scgpt"}},
                    Overwrite::replace);
  write_file(in("vocab.json"), model.vocabulary.json_text(), Overwrite::replace);
  write_json(in("args.json"), model.config.to_args(), Overwrite::replace);
  save_beside(model.path, folder, {}, labels);
}

}  // namespace scgraft
