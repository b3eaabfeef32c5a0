// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/load.h"

#include <filesystem>
#include <map>
#include <set>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace scgraft {
namespace {

// Tensors of published files that are no part of the inference network.
bool without_use(const std::string& name) { return name == "flag_encoder.weight"; }

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

std::string first_five(const std::set<std::string>& names) {
  std::string text;
  int n = 0;
  for (const std::string& name : names) {
    if (++n > 5) break;
    text += (n > 1 ? ", " : "") + name;
  }
  if (names.size() > 5) text += cat(" and ", names.size() - 5, " more");
  return text;
}

[[noreturn]] void fail(const std::string& file, const std::string& message, const char* code,
                       const std::string& hint = {}) {
  ModelError error(cat(file, ": ", message), code);
  error.set_where(file);
  error.set_hint(hint);
  throw error;
}

}  // namespace

std::string canonical_scgpt_name(const std::string& name) {
  std::string out = name;
  replace(out, "self_attn._impl.", "self_attn.");
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
  model.config = ScgptConfig::from_args(read_json(args_file, FileKind::model), args_file);
  model.vocabulary = Vocabulary::open(vocab_file);
  model.vocabulary.append_specials();
  const Checkpoint file = open_checkpoint(folder);

  // Canonical name -> name in the file. Adapter files of scPEFT hold both in_proj and Wqkv names
  // for one tensor; either serves.
  std::map<std::string, std::string> names;
  for (const TensorInfo& info : file.tensors()) {
    const std::string name = canonical_scgpt_name(info.name);
    if (!names.contains(name) || info.name == name) names[name] = info.name;
  }
  auto has = [&](const std::string& name) { return names.contains(name); };
  if (!has("encoder.embedding.weight"))
    fail(file.file(), "encoder.embedding.weight is missing; this is no scGPT checkpoint",
         "E-TENSOR-MISSING");
  const TensorInfo& embedding = file.info(names.at("encoder.embedding.weight"));
  model.config.vocab = embedding.dims.empty() ? 0 : embedding.dims[0];
  model.config.check(args_file);
  if (model.vocabulary.size() > model.config.vocab)
    fail(vocab_file,
         cat(model.vocabulary.size(), " tokens, but the gene embedding in ", file.file(), " has ",
             model.config.vocab, " rows"),
         "E-VOCAB-SIZE", "use the vocab.json that belongs to this checkpoint");

  ScgptNetwork::Heads heads;
  heads.decoder = options.pretraining_heads && has("decoder.fc.0.weight");
  heads.mvc = options.pretraining_heads && has("mvc_decoder.gene2query.weight");
  const bool file_head = has("cls_decoder.out_layer.weight");
  heads.classes = options.new_head_classes;
  if (heads.classes == 0 && file_head) {
    const TensorInfo& head = file.info(names.at("cls_decoder.out_layer.weight"));
    heads.classes = head.dims.empty() ? 0 : head.dims[0];
  }

  std::set<std::string> used, missing;
  std::string misshaped;
  const ParameterSource fresh = scgpt_initialiser(options.seed, options.dtype);
  const ParameterSource source = [&](const std::string& name, const Shape& shape) {
    if (options.new_head_classes > 0 && name.starts_with("cls_decoder.")) return fresh(name, shape);
    if (!has(name)) {
      missing.insert(name);
      return Tensor({0}, options.dtype);
    }
    used.insert(name);
    const Tensor& tensor = file.tensor(names.at(name));
    if (tensor.shape() != shape && misshaped.empty())
      misshaped = cat(name, " is ", tensor.shape(), ", args.json asks for ", shape);
    return tensor.dtype() == options.dtype ? tensor.share() : tensor.converted(options.dtype);
  };
  // Shapes are compared before anything computes with them: a network with a missing tensor is
  // never returned.
  std::unique_ptr<ScgptNetwork> network;
  try {
    network = std::make_unique<ScgptNetwork>(model.config, heads, source);
  } catch (const ShapeError&) {
    if (missing.empty() && misshaped.empty()) throw;
  }
  if (!missing.empty())
    fail(file.file(),
         cat(missing.size(), " tensors of the network are missing: ", first_five(missing)),
         "E-TENSOR-MISSING", "compare args.json with the file: scgraft inspect " + folder);
  if (!misshaped.empty())
    fail(file.file(), misshaped, "E-TENSOR-SHAPE",
         "use the args.json that belongs to this checkpoint");

  std::set<std::string> left;
  for (const auto& [name, original] : names) {
    if (used.contains(name)) continue;
    const bool dropped_head = (options.new_head_classes > 0 && name.starts_with("cls_decoder.")) ||
                              (!options.pretraining_heads &&
                               (name.starts_with("decoder.") || name.starts_with("mvc_decoder.")));
    if (without_use(name) || dropped_head)
      model.ignored.push_back(original);
    else if (!options.claims || !options.claims(original))
      left.insert(original);
  }
  if (!left.empty())
    fail(file.file(), cat(left.size(), " tensors are not part of this network: ", first_five(left)),
         "E-TENSOR-EXTRA", "scgraft inspect " + folder + " lists them");
  model.network = std::move(network);
  model.fingerprint = file.fingerprint();
  return model;
}

void save_scgpt(const std::string& folder, const ScgptModel& model) {
  namespace fs = std::filesystem;
  auto in = [&](const char* name) { return (fs::path(folder) / name).string(); };
  std::vector<NamedTensor> tensors;
  HostCopies host;
  for (const Parameter* p : model.network->parameters().all())
    tensors.push_back({p->name, host.view(p->value)});
  write_safetensors(in("model.safetensors"), std::move(tensors), {{"model_type", "scgpt"}},
                    Overwrite::replace);
  write_file(in("vocab.json"), model.vocabulary.json_text(), Overwrite::replace);
  write_json(in("args.json"), model.config.to_args(), Overwrite::replace);
}

}  // namespace scgraft
