// SPDX-License-Identifier: Apache-2.0
#include "adapters/scpeft.h"

#include "adapters/union.h"

namespace scgraft {
namespace {

[[noreturn]] void fail(const Checkpoint& file, const std::string& message) {
  ModelError error(cat(file.file(), ": ", message), "E-SCPEFT");
  error.set_where(file.file());
  throw error;
}

// Layers that carry the adapter, as the first and last of a run.
std::pair<int, int> layer_range(const nlohmann::json& config, const Checkpoint& file, int layers) {
  int first = -1;
  int last = -1;
  if (!config.contains("adapter_layer_conf")) {  // the default of the original: the lower half
    first = 0;
    last = layers / 2 - 1;
  } else {
    const auto& flags = config["adapter_layer_conf"];
    if (!flags.is_array() || static_cast<int>(flags.size()) > layers)
      fail(file, cat("adapter_layer_conf must list at most ", layers, " layers"));
    for (int i = 0; i < static_cast<int>(flags.size()); ++i) {
      const auto& flag = flags[static_cast<size_t>(i)];
      if (flag.is_boolean() ? !flag.get<bool>() : flag != 1) continue;
      if (first < 0) first = i;
      if (last >= 0 && i != last + 1)
        fail(file, "adapter_layer_conf leaves out layers in the middle; a run of layers is needed");
      last = i;
    }
  }
  if (first < 0) fail(file, "adapter_layer_conf switches every layer off");
  return {first, last};
}

int64_t number(const nlohmann::json& config, const char* key, int64_t otherwise) {
  return config.contains(key) && config[key].is_number() ? config[key].get<int64_t>() : otherwise;
}

// Fills the parameters of one array of the file, and takes down its shape: that of the parameters
// one below the other, perhaps with a 1 in front.
void fill(const Checkpoint& file, const std::string& name, ScpeftAdapter::Array& array) {
  const Tensor& from = file.tensor(name);
  array.shape = from.shape();
  int64_t rows = 0;
  for (const Parameter* p : array.parts) rows += p->value.dim(0);
  const Shape part = array.parts.front()->value.shape();
  const Shape whole = part.rank() == 1 ? Shape{rows} : Shape{rows, part[1]};
  const bool fits =
      from.shape() == whole || (whole.rank() == 2 && from.shape() == Shape{1, whole[0], whole[1]});
  if (!fits) fail(file, cat(name, " is ", from.shape(), ", ", whole, " was wanted"));
  const Tensor same = from.converted(array.parts.front()->value.dtype());
  const ConstTensorView view = std::as_const(same).view().reshape(whole);
  int64_t row = 0;
  for (Parameter* p : array.parts) {
    copy(view.rows(row, row + p->value.dim(0)), p->value.view());
    row += p->value.dim(0);
  }
}

// Our parameters by the arrays of the file that hold them.
class Arrays {
 public:
  Arrays(Adapter& adapter, ScpeftAdapter& out) : out_(out) {
    for (Parameter* p : adapter.parameters()) ours_[p->name] = p;
  }
  void add(const std::string& theirs, const std::string& ours) {
    out_.arrays[theirs].parts.push_back(ours_.at(ours));
  }
  // theirs: "<name>.fc" or "<name>.D_fc".
  void add_bottleneck(const std::string& theirs, const std::string& ours) {
    for (const char* part : {"1.weight", "1.bias", "2.weight", "2.bias"})
      add(theirs + part, cat(ours, ".fc", part));
  }

 private:
  ScpeftAdapter& out_;
  std::map<std::string, Parameter*> ours_;
};

// Of [1, rows, dim] or [rows, dim].
int64_t prefix_rows(const Shape& shape) { return shape.rank() < 2 ? 0 : shape[shape.rank() - 2]; }

constexpr const char* kTokenAdapter = "value_encoder.adapter";

std::string space_adapter(const Backbone& backbone, int layer) {
  return backbone.layer_path(layer) + ".space_adapter";
}

}  // namespace

bool is_scpeft_tensor(const std::string& name) {
  for (const char* part :
       {".lora_A", ".lora_B", ".space_adapter.", "value_encoder.adapter.", ".adapter_embeddings",
        "Space_Adapter.D_fc", "performer.Encoder_", ".net.Encoder_", ".prompt_embeddings"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

ScpeftAdapter read_scpeft_adapter(const nlohmann::json& config, const Checkpoint& file,
                                  Backbone& backbone) {
  ScpeftAdapter out;
  if (!config.is_object() || !config.contains("peft_type"))
    fail(file, "peft_config.json has no peft_type");
  const auto& type = config["peft_type"];
  if (type == false || type.is_null()) return out;
  const std::map<std::string, std::string> types = {{"LORA", "lora"},
                                                    {"ENCODER", "encoder"},
                                                    {"PREFIX", "prefix"},
                                                    {"TOKEN", "token"},
                                                    {"HYBRID", "token+encoder"}};
  const auto known = types.find(type.is_string() ? type.get<std::string>() : "");
  if (known == types.end())
    fail(file, cat("peft_config.json asks for ", type.dump(),
                   "; this version reads LORA, ENCODER, PREFIX, TOKEN and HYBRID"));

  AdapterOptions options;
  options.type = known->second;
  options.rank = number(config, "r", 8);
  options.alpha = static_cast<double>(number(config, "lora_alpha", 1));
  options.targets = {"q", "v"};
  const bool lora = options.type == "lora";
  const bool token = options.type.starts_with("token");
  const bool encoder = options.type.ends_with("encoder");
  const bool prefix = options.type == "prefix";
  const bool layered = lora || encoder || prefix;
  if (layered)
    std::tie(options.first_layer, options.last_layer) =
        layer_range(config, file, backbone.layer_count());
  // The width is that of the arrays: mlp_ratio is rounded on its way there.
  if (prefix)
    options.tokens = prefix_rows(
        file.tensor(backbone.layer_path(options.first_layer) + ".adapter_embeddings").shape());
  if (token || encoder) {
    const std::string first = token ? kTokenAdapter : space_adapter(backbone, options.first_layer);
    options.width = static_cast<double>(file.tensor(first + ".fc1.weight").dim(0)) /
                    static_cast<double>(backbone.dim());
  }
  out.adapter = make_adapter(options, backbone, 0);

  Arrays arrays(*out.adapter, out);
  if (token) arrays.add_bottleneck(cat(kTokenAdapter, ".fc"), "token_adapter");
  for (int layer = options.first_layer; layered && layer <= options.last_layer; ++layer) {
    if (prefix)
      arrays.add(backbone.layer_path(layer) + ".adapter_embeddings",
                 backbone.layer_path(layer) + ".prefix");
    if (encoder)
      arrays.add_bottleneck(space_adapter(backbone, layer) + ".fc", space_adapter(backbone, layer));
    if (!lora) continue;
    const std::string attention = backbone.layer_path(layer) + ".self_attn.";
    for (const std::string side : {"lora_A", "lora_B"})
      for (const char* projection : {"q", "v"})
        arrays.add(attention + "Wqkv." + side,
                   cat("base_model.model.",
                       backbone.module_path(cat("layers.", layer, ".attn.", projection)), ".", side,
                       ".weight"));
    out.trained_with_it.push_back(attention + "in_proj_bias");
  }
  for (auto& [name, array] : out.arrays) fill(file, name, array);
  return out;
}

namespace {

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
std::unique_ptr<Adapter> make_scbert_encoder(AdapterOptions options, const nlohmann::json& config,
                                             const Checkpoint& file, Backbone& backbone) {
  options.type = "encoder";
  options.start = "uniform";
  std::vector<std::unique_ptr<Adapter>> parts;
  for (const ScbertBranch& branch : kScbertBranches) {
    const std::vector<int> on = switched_on(config, branch.layers, file, backbone.layer_count());
    if (on.empty()) continue;
    options.layout = branch.layout;
    options.first_layer = on.front();
    options.last_layer = on.back();
    parts.push_back(make_adapter(options, backbone, 0));
  }
  if (parts.empty()) fail(file, "space_conf and mlp_conf switch every layer off");
  if (parts.size() == 1) return std::move(parts.front());
  return std::make_unique<AdapterUnion>(options, std::move(parts));
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
  const auto width_of = [&](const std::string& name) {
    return static_cast<double>(file.tensor(name + "1.weight").dim(0)) /
           static_cast<double>(backbone.dim());
  };
  if (kind == "lora") {
    options.rank = file.tensor(theirs(0, "q") + ".lora_A").dim(0);
  } else if (kind == "prefix") {
    options.tokens = prefix_rows(file.tensor(rows).shape());
  } else if (kind == "token") {
    options.width = width_of(token);
  } else {
    for (const ScbertBranch& branch : kScbertBranches) {
      const std::vector<int> on = switched_on(config, branch.layers, file, backbone.layer_count());
      if (!on.empty()) options.width = width_of(module_of(branch, on.front()) + "fn.D_fc");
    }
  }
  out.adapter = kind == "encoder" ? make_scbert_encoder(options, config, file, backbone)
                                  : make_adapter(options, backbone, 0);

  Arrays arrays(*out.adapter, out);
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
  for (auto& [name, array] : out.arrays) fill(file, name, array);
  return out;
}

}  // namespace scgraft
