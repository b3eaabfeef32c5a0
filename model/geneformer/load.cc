// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/load.h"

#include <cstring>
#include <filesystem>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/checkpoint_source.h"
#include "model/model_folder.h"

namespace scgraft {
namespace {

constexpr const char* kSizes = "config.json";

bool starts_with_any(const std::string& name, std::initializer_list<const char*> prefixes) {
  for (const char* prefix : prefixes)
    if (name.starts_with(prefix)) return true;
  return false;
}

void replace_end(std::string& text, const std::string& from, const std::string& to) {
  if (text.ends_with(from)) text.replace(text.size() - from.size(), from.size(), to);
}

bool is_pooler(const std::string& name) { return name.starts_with("bert.pooler."); }

bool same_values(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.view().data(), b.view().data(), static_cast<size_t>(a.nbytes())) == 0;
}

// What a file says twice must be the same both times.
void require_tied(const Checkpoint& file, const CheckpointSource& tensors, const std::string& copy,
                  const std::string& original) {
  if (!tensors.has(copy)) return;
  if (same_values(file.tensor(tensors.name_in_file(copy)),
                  file.tensor(tensors.name_in_file(original))))
    return;
  ModelError error(cat(file.file(), ": ", copy, " differs from ", original,
                       "; this version runs models whose decoder is tied to the word embedding"),
                   "E-MODEL-CONFIG");
  error.set_where(file.file());
  throw error;
}

}  // namespace

std::string canonical_geneformer_name(const std::string& name) {
  std::string out = name;
  if (starts_with_any(out, {"embeddings.", "encoder.", "pooler."})) out = "bert." + out;
  replace_end(out, "LayerNorm.gamma", "LayerNorm.weight");
  replace_end(out, "LayerNorm.beta", "LayerNorm.bias");
  return out;
}

GeneformerModel load_geneformer(const std::string& folder, const GeneformerLoadOptions& options) {
  GeneformerModel model;
  model.path = folder;
  const std::string config = (std::filesystem::path(folder) / kSizes).string();
  model.sizes = read_json(config, FileKind::model);
  model.config = GeneformerConfig::from_json(model.sizes, config);
  const Checkpoint file = open_checkpoint(folder);
  CheckpointSource tensors(file, options.dtype, canonical_geneformer_name);

  GeneformerNetwork::Heads heads;
  const bool fresh_head = options.new_head_classes > 0;
  const bool own_heads = options.heads && !fresh_head;
  const bool pooler = tensors.has("bert.pooler.dense.weight");
  heads.words = own_heads && tensors.has("cls.predictions.transform.dense.weight");
  heads.pooler = fresh_head || (own_heads && pooler);
  heads.classes = options.new_head_classes;
  if (own_heads && tensors.has("classifier.weight"))
    heads.classes = tensors.rows("classifier.weight");
  const ParameterSource fresh = geneformer_initialiser(options.seed, options.dtype);
  const ParameterSource source = [&](const std::string& name, const Shape& shape) {
    const bool is_fresh =
        fresh_head && (name.starts_with("classifier.") || (is_pooler(name) && !pooler));
    return is_fresh ? fresh(name, shape) : tensors.take(name, shape);
  };
  // A network with a missing tensor is never returned, and may not even come together.
  try {
    model.network = std::make_unique<GeneformerNetwork>(model.config, heads, source);
  } catch (const ShapeError&) {
    tensors.check(kSizes);
    throw;
  }
  tensors.check(kSizes);
  const std::string words = "bert.embeddings.word_embeddings.weight";
  require_tied(file, tensors, "cls.predictions.decoder.weight", words);
  if (heads.words)
    require_tied(file, tensors, "cls.predictions.decoder.bias", "cls.predictions.bias");

  model.ignored = tensors.ignored(
      [&](const std::string& name) {
        return name == "bert.embeddings.position_ids" ||
               name.starts_with("cls.predictions.decoder.") ||
               (!own_heads && (name.starts_with("cls.predictions.") ||
                               name.starts_with("classifier.") || is_pooler(name)));
      },
      options.claims);
  model.fingerprint = file.fingerprint();
  return model;
}

void save_geneformer(const std::string& folder, const GeneformerModel& model,
                     const std::vector<std::string>& labels) {
  const auto in = [&](const char* name) { return (std::filesystem::path(folder) / name).string(); };
  std::vector<NamedTensor> tensors;
  HostCopies host;
  for (const Parameter* p : model.network->parameters().all())
    tensors.push_back({p->name, host.view(p->value)});
  write_safetensors(in("model.safetensors"), std::move(tensors), {{"model_type", "bert"}},
                    Overwrite::replace);
  nlohmann::json sizes = model.sizes;
  sizes.erase("torch_dtype");  // older and newer name of what the tensors say
  sizes.erase("dtype");
  if (!labels.empty()) {
    sizes["architectures"] = {"BertForSequenceClassification"};
    sizes["id2label"] = sizes["label2id"] = nlohmann::json::object();
    for (size_t i = 0; i < labels.size(); ++i) {
      sizes["id2label"][std::to_string(i)] = labels[i];
      sizes["label2id"][labels[i]] = i;
    }
  }
  write_json(in(kSizes), sizes, Overwrite::replace);
  constexpr std::string_view kDictionaries[] = {"token_dictionary", "gene_median_dictionary",
                                                "gene_name_id_dict", "ensembl_mapping_dict"};
  save_beside(model.path, folder, kDictionaries, labels);
}

}  // namespace scgraft
