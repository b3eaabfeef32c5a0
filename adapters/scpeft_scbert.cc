// SPDX-License-Identifier: Apache-2.0
#include "adapters/scpeft_arrays.h"

namespace scgraft {
namespace {

using namespace scpeft;

// scPEFT's bottlenecks in the layers of scBERT: name in the file, list of layers, and ours.
struct ScbertBranch {
  const char* name;
  const char* layers;
  const char* layout;
  const char* module;
};
constexpr ScbertBranch kScbertBranches[] = {
    {"Space", "space_conf", "normed", ".space_adapter"},
    {"MLP", "mlp_conf", "residual", ".mlp_adapter"},
};

// Which layers space_conf or mlp_conf switch on; all where there is none.
std::vector<int> switched_on(const nlohmann::json& config, const char* key, const Checkpoint& file,
                             int layers) {
  std::vector<int> on;
  if (config.contains(key)) {
    const auto& flags = config[key];
    if (!flags.is_array() || static_cast<int>(flags.size()) != layers)
      fail(file, cat(key, " must list ", layers, " layers"));
    for (int i = 0; i < layers; ++i)
      if (flags[static_cast<size_t>(i)] == 1) on.push_back(i);
  }
  if (!on.empty() && on.back() - on.front() + 1 != static_cast<int>(on.size()))
    fail(file, cat(key, " leaves out layers in the middle; a run of layers is needed"));
  return on;
}

// Bottlenecks of the attention's and of the feed-forward branch, each in its own run of layers.
AdapterOptions encoder_options(AdapterOptions options, const nlohmann::json& config,
                               const Checkpoint& file, const Backbone& backbone) {
  options.start = "uniform";
  std::string type;
  std::vector<AdapterOptions> parts;
  for (const ScbertBranch& branch : kScbertBranches) {
    const std::vector<int> on = switched_on(config, branch.layers, file, backbone.layer_count());
    if (on.empty()) continue;
    AdapterOptions& part = parts.emplace_back(options);
    part.layout = branch.layout;
    part.first_layer = on.front();
    part.last_layer = on.back();
    type += type.empty() ? "encoder" : "+encoder";
  }
  if (parts.empty()) fail(file, "space_conf and mlp_conf switch every layer off");
  if (parts.size() == 1) return parts.front();
  options.type = type;
  options.parts = std::move(parts);
  return options;
}

}  // namespace

ScpeftAdapter read_scpeft_scbert_adapter(const nlohmann::json& config, const Checkpoint& file,
                                         Backbone& backbone) {
  ScpeftAdapter out;
  if (!config.contains("prompt_type") || config["prompt_type"].is_null()) return out;
  const std::map<std::string, std::string> types = {{"LoRA", "lora"},
                                                    {"Gene_encoder_prompt", "encoder"},
                                                    {"Gene_token_prompt", "token"},
                                                    {"prefix_prompt", "prefix"}};
  const auto& type = config["prompt_type"];
  const auto known = types.find(type.is_string() ? type.get<std::string>() : "");
  if (known == types.end())
    fail(file, cat("config.json has prompt_type ", type.dump(), "; of scBERT this version reads ",
                   "LoRA, Gene_encoder_prompt, Gene_token_prompt and prefix_prompt"));
  const std::string& kind = known->second;

  AdapterOptions options;
  options.type = kind;
  options.alpha = 1;
  options.targets = {"q", "v"};
  options.sharing = "layers";
  const std::string token = "Space_Adapter.D_fc";
  const std::string rows = "performer.net.prompt_embeddings.prompt_embeddings";
  const auto theirs = [&](int layer, const char* projection) {
    return backbone.module_path(cat("layers.", layer, ".attn.", projection));
  };
  const auto module_of = [](const ScbertBranch& branch, int layer) {
    return cat("performer.Encoder_", branch.name, ".", layer, ".");
  };
  if (kind == "lora") {
    options.rank = file.tensor(theirs(0, "q") + ".lora_A").dim(0);
  } else if (kind == "prefix") {
    options.tokens = prefix_rows(file, rows);
  } else if (kind == "token") {
    options.width = width_of(file, token, backbone);
  } else {
    for (const ScbertBranch& branch : kScbertBranches) {
      const std::vector<int> on = switched_on(config, branch.layers, file, backbone.layer_count());
      if (!on.empty())
        options.width = width_of(file, module_of(branch, on.front()) + "fn.D_fc", backbone);
    }
  }
  out.adapter = make_adapter(
      kind == "encoder" ? encoder_options(options, config, file, backbone) : options, backbone, 0);

  Arrays arrays(out);
  if (kind == "token") arrays.add_bottleneck(token, "token_adapter");
  if (kind == "prefix") arrays.add(rows, "prefix");
  for (int layer = 0; kind == "lora" && layer < backbone.layer_count(); ++layer)
    for (const char* projection : {"q", "v"})
      for (const char* side : {".lora_A", ".lora_B"}) {
        const std::string path = theirs(layer, projection);
        arrays.add(path + side, cat("base_model.model.", path, side, ".weight"));
      }
  for (const ScbertBranch& branch : kScbertBranches) {
    if (kind != "encoder") break;
    for (const int layer : switched_on(config, branch.layers, file, backbone.layer_count())) {
      const std::string ours = backbone.layer_path(layer) + branch.module;
      arrays.add_bottleneck(module_of(branch, layer) + "fn.D_fc", ours);
      for (const char* part : {"norm.weight", "norm.bias"})
        arrays.add(module_of(branch, layer) + part, cat(ours, ".", part));
    }
  }
  arrays.fill(file);
  return out;
}

}  // namespace scgraft
