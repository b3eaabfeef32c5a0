// SPDX-License-Identifier: Apache-2.0
#include "adapters/store.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "adapters/model_card.h"
#include "adapters/peft_config.h"
#include "adapters/prefix_tuning.h"
#include "adapters/store_files.h"
#include "io/file_error.h"
#include "io/json.h"
#include "io/output_folder.h"
#include "io/text.h"
#include "runtime/version.h"

namespace scgraft {
namespace {

using nlohmann::json;
using namespace adapter_files;

[[noreturn]] void fail(const std::string& folder, const std::string& message) {
  throw_file_error(FileKind::model, folder, message, "E-ADAPTER");
}

void check_names(const std::string& folder, const std::vector<std::string>& names,
                 const char* what) {
  std::set<std::string_view> seen;
  for (const std::string& name : names) {
    if (name.empty() || !is_utf8(name) || name.find_first_of("\t\n\r") != std::string::npos)
      fail(folder, cat("an adapter cannot be saved with the ", what, " \"", escaped(name), "\""));
    if (!seen.insert(name).second)
      fail(folder,
           cat("an adapter cannot be saved with the ", what, " \"", escaped(name), "\" twice"));
  }
}

json labels_json(const AdapterBundle& bundle) {
  json out = bundle.labels_extra.is_object() ? bundle.labels_extra : json::object();
  require(!out.contains("classes") && !out.contains("counts"),
          "labels_extra must not hold the keys classes and counts");
  out["classes"] = bundle.labels;
  if (!bundle.label_counts.empty()) out["counts"] = bundle.label_counts;
  return out;
}

json provenance_json(const AdapterBundle& bundle, std::span<Parameter* const> saved) {
  json out = bundle.provenance.is_object() ? bundle.provenance : json::object();
  json names = json::array();
  for (const Parameter* p : saved) names.push_back(p->name);
  out[kSection] = {
      {"format", kFormat},
      {"version", kVersion},
      {"git", kGitHash},
      {"base",
       {{"path", bundle.base_path},
        {"fingerprint", bundle.base_fingerprint},
        {"kind", bundle.base_kind}}},
      {"adapter", bundle.has_adapter ? to_json(bundle.options) : json()},
      {"trained", names},
  };
  return out;
}

// Modules of which every parameter was trained, the outermost ones: what PEFT calls
// modules_to_save. A single trained tensor of a larger module has no name there.
std::vector<std::string> whole_modules(Backbone& backbone, std::span<Parameter* const> saved) {
  const std::set<const Parameter*> trained(saved.begin(), saved.end());
  std::set<std::string> partly;  // modules that hold a frozen parameter
  for (const Parameter* p : backbone.parameters().all())
    if (!trained.contains(p))
      for (size_t dot = p->name.find('.'); dot != std::string::npos;
           dot = p->name.find('.', dot + 1))
        partly.insert(p->name.substr(0, dot));
  std::set<std::string> modules;
  for (const Parameter* p : saved)
    for (size_t dot = p->name.find('.'); dot != std::string::npos; dot = p->name.find('.', dot + 1))
      if (const std::string module = p->name.substr(0, dot); !partly.contains(module)) {
        modules.insert(module);
        break;
      }
  return {modules.begin(), modules.end()};
}

// Module paths of the projections of a LoRA, HRA or OFT adapter, from the keys of its parameters.
std::vector<std::string> target_modules(const std::vector<Parameter*>& parameters) {
  std::vector<std::string> out;
  for (const Parameter* p : parameters)
    for (const std::string_view end : {".lora_A.weight", ".hra_u", ".oft_R.weight"})
      if (p->name.starts_with(kWrapped) && p->name.ends_with(end))
        out.push_back(
            p->name.substr(kWrapped.size(), p->name.size() - kWrapped.size() - end.size()));
  return out;
}

}  // namespace

json adapter_files::to_json(const AdapterOptions& options) {
  json out = {{"type", options.type},
              {"r", options.rank},
              {"lora_alpha", options.alpha},
              {"lora_dropout", options.dropout},
              {"targets", options.targets},
              {"blocks", options.blocks},
              {"block_size", options.block_size},
              {"constraint", options.constraint},
              {"width", options.width},
              {"layout", options.layout},
              {"start", options.start},
              {"tokens", options.tokens},
              {"sharing", options.sharing},
              {"first_layer", options.first_layer},
              {"last_layer", options.last_layer}};
  for (const AdapterOptions& part : options.parts) out["parts"].push_back(to_json(part));
  return out;
}

void save_adapter(const std::string& folder, const AdapterBundle& given, Adapter* adapter,
                  Backbone& backbone, std::span<Parameter* const> saved_modules,
                  Overwrite overwrite) {
  AdapterBundle bundle = given;
  bundle.has_adapter = adapter != nullptr;
  bundle.base_kind = backbone.kind();
  if (adapter) bundle.options = adapter->options();
  check_names(folder, bundle.labels, "class");
  check_names(folder, bundle.genes, "gene");
  if (!bundle.label_counts.empty() && bundle.label_counts.size() != bundle.labels.size())
    fail(folder, cat("there are ", bundle.labels.size(), " classes and ",
                     bundle.label_counts.size(), " counts of their cells"));

  PeftConfig config;
  config.base_path = bundle.base_path;
  config.modules_to_save = whole_modules(backbone, saved_modules);
  std::vector<NamedTensor> tensors;
  HostCopies host;
  Tensor prompt;
  for (const Parameter* p : saved_modules)
    tensors.push_back(
        {trained_key(adapter ? bundle.options.type : "", p->name), host.view(p->value)});
  if (adapter) {
    const std::vector<Parameter*> parameters = adapter->parameters();
    config.kind = adapter->kind();
    config.every_layer =
        bundle.options.first_layer == 0 && bundle.options.last_layer + 1 == backbone.layer_count();
    config.tokens = bundle.options.tokens;
    config.layers = backbone.layer_count();
    config.dim = backbone.key_width();
    config.heads = backbone.heads();
    if (config.kind == "prefix_tuning" && config.every_layer) {
      prompt = prompt_embeddings(parameters);
      tensors.push_back({std::string(kPromptEmbeddings), std::as_const(prompt).view()});
    } else {
      for (const Parameter* p : parameters) tensors.push_back({p->name, host.view(p->value)});
    }
    config.rank = bundle.options.rank;
    config.alpha = bundle.options.alpha;
    config.dropout = bundle.options.dropout;
    config.blocks = bundle.options.blocks;
    config.block_size = bundle.options.block_size;
    config.constraint = bundle.options.constraint;
    config.target_modules = target_modules(parameters);
  }
  int64_t numel = 0;
  for (const NamedTensor& t : tensors) numel += t.tensor.numel();

  OutputFolder out(folder, overwrite);
  const auto add = [&](const char* name, const json& value) {
    if (!value.is_null()) write_json(out / name, value, Overwrite::refuse);
  };
  add(kConfig, scgraft::to_json(config));
  write_safetensors(out / kTensors, std::move(tensors),
                    {{"base_fingerprint", bundle.base_fingerprint}}, Overwrite::refuse);
  if (!bundle.labels.empty()) add(kLabels, labels_json(bundle));
  if (!bundle.genes.empty()) {
    std::string text = cat(kGenesHeader, "\n");
    for (const std::string& gene : bundle.genes) text += gene + "\n";
    write_file(out / kGenes, text, Overwrite::refuse);
  }
  add(kPreprocess, bundle.preprocess);
  add(kMetrics, bundle.metrics);
  if (!bundle.baselines.empty())
    write_safetensors(out / kBaselines, bundle.baselines, {}, Overwrite::refuse);
  add(kProvenance, provenance_json(bundle, saved_modules));
  write_file(out / kCard,
             model_card(std::filesystem::path(out.path()).filename().string(), bundle, numel),
             Overwrite::refuse);
  out.commit();
}

}  // namespace scgraft
