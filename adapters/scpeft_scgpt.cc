// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "adapters/scpeft_arrays.h"
#include "kernels/rotation.h"

namespace scgraft {
namespace {

using namespace scpeft;

// What a code line calls the parts of an adapter; bottlenecks are followed by 1.weight and so on.
struct Names {
  const char* token;   // bottleneck
  const char* space;   // bottleneck, in a layer
  const char* mlp;     // bottleneck beside the feed-forward part, in a layer; null: it has none
  const char* prefix;  // in a layer
};
constexpr Names kMain = {"value_encoder.adapter.fc", ".space_adapter.fc", nullptr,
                         ".adapter_embeddings"};
constexpr Names kReproduction = {"value_encoder.Space_Adapter.D_fc", ".Space_Adapter.D_fc",
                                 ".MLP_Adapter.D_fc", ".prompt_embeddings"};
constexpr const char* kLora = ".self_attn.Wqkv.lora_";
constexpr const char* kHra = ".self_attn.Wqkv.hra_u";
constexpr const char* kOft = ".self_attn.Wqkv.R";

class Reader {
 public:
  Reader(const nlohmann::json& config, const Checkpoint& file, Backbone& backbone)
      : config_(config), file_(file), backbone_(backbone) {}

  ScpeftAdapter read();

 private:
  struct Layers {
    int first = 0, last = -1;
  };
  std::string path(int layer) const { return backbone_.layer_path(layer); }
  bool has(const char* bottleneck) const { return file_.contains(cat(bottleneck, "1.weight")); }
  // The run of layers in which the file has an array of this name, if any. Throws where it is none.
  std::optional<Layers> layers_with(const std::string& array) const;
  const Names& names() const;
  AdapterOptions options();
  void check_kind(const std::string& type) const;

  const nlohmann::json& config_;
  const Checkpoint& file_;
  Backbone& backbone_;
};

std::optional<Reader::Layers> Reader::layers_with(const std::string& array) const {
  std::optional<Layers> found;
  for (int i = 0; i < backbone_.layer_count(); ++i) {
    if (!file_.contains(path(i) + array)) continue;
    if (!found) found = Layers{i, i};
    if (i > found->last + 1)
      fail(file_, cat("layer ", found->last, " and layer ", i, " have ", array.substr(1),
                      ", and not those between them; a run of layers is needed"));
    found->last = i;
  }
  return found;
}

// The code line whose arrays are there.
const Names& Reader::names() const {
  for (const Names* names : {&kMain, &kReproduction})
    if (has(names->token) || layers_with(cat(names->space, "1.weight")) ||
        (names->mlp != nullptr && layers_with(cat(names->mlp, "1.weight"))) ||
        layers_with(names->prefix))
      return *names;
  return kMain;
}

// What the arrays of the file are, one part after the other.
AdapterOptions Reader::options() {
  const Names& n = names();
  std::vector<AdapterOptions> parts;
  const auto add = [&](const char* type, std::optional<Layers> layers) -> AdapterOptions& {
    AdapterOptions& part = parts.emplace_back();
    part.type = type;
    part.start = "uniform";
    if (layers) part.first_layer = layers->first;
    if (layers) part.last_layer = layers->last;
    return part;
  };
  if (has(n.token)) add("token", {}).width = width_of(file_, n.token, backbone_);
  if (const auto layers = layers_with(cat(n.space, "1.weight"))) {
    AdapterOptions& part = add("encoder", layers);
    part.width = width_of(file_, path(layers->first) + n.space, backbone_);
    if (n.mlp != nullptr)
      if (const auto beside = layers_with(cat(n.mlp, "1.weight"))) {
        part.layout = "parallel";
        if (beside->first != layers->first || beside->last != layers->last)
          fail(file_, cat("layers ", layers->first, " to ", layers->last, " have Space_Adapter, ",
                          beside->first, " to ", beside->last,
                          " have MLP_Adapter; the same layers are needed"));
      }
  } else if (n.mlp != nullptr && layers_with(cat(n.mlp, "1.weight"))) {
    fail(file_, "there are MLP_Adapter in layers without Space_Adapter; both are needed");
  }
  if (const auto layers = layers_with(cat(kLora, "A"))) {
    AdapterOptions& part = add("lora", layers);
    const int64_t rows = file_.tensor(cat(path(layers->first), kLora, "A")).dim(0);
    if (rows % 2 != 0)
      fail(file_, cat("lora_A has ", rows, " rows; as many for q as for v are needed"));
    part.rank = rows / 2;
    part.alpha = 1;
    if (config_.is_object() && config_.contains("lora_alpha") && config_["lora_alpha"].is_number())
      part.alpha = config_["lora_alpha"].get<double>();
    part.targets = {"q", "v"};
  }
  if (const auto layers = layers_with(kHra)) {
    AdapterOptions& part = add("hra", layers);
    const Shape shape = file_.tensor(path(layers->first) + kHra).shape();
    if (shape.rank() != 2 || shape[1] < 2 || shape[1] % 2 != 0)
      fail(file_, cat("hra_u is ", shape, "; an even number of columns is needed"));
    part.rank = shape[1];
    part.targets = {"q", "k", "v"};
  }
  if (const auto layers = layers_with(kOft)) {
    AdapterOptions& part = add("oft", layers);
    const Shape shape = file_.tensor(path(layers->first) + kOft).shape();
    if (shape.rank() != 3 || shape[1] != shape[2] || shape[0] * shape[1] != backbone_.dim() ||
        shape[1] < 2 || shape[1] > kRotationSize)
      fail(file_, cat("R is ", shape, "; [blocks, n, n] is needed, n from 2 to ", kRotationSize,
                      " and ", backbone_.dim(), " rows in all"));
    part.blocks = shape[0];
    part.constraint = oft_constraint(shape[1]);
    part.targets = {"q", "k", "v"};
  }
  if (const auto layers = layers_with(n.prefix))
    add("prefix", layers).tokens = prefix_rows(file_, path(layers->first) + n.prefix);

  if (parts.empty()) return AdapterOptions{.type = ""};
  if (parts.size() == 1) return parts.front();
  AdapterOptions all;
  all.type.clear();
  for (const AdapterOptions& part : parts) all.type += (all.type.empty() ? "" : "+") + part.type;
  all.parts = std::move(parts);
  return all;
}

// The configuration and the arrays must not tell two stories.
void Reader::check_kind(const std::string& type) const {
  if (!config_.is_object()) return;
  if (!config_.contains("peft_type")) fail(file_, "peft_config.json has no peft_type");
  const auto& wanted = config_["peft_type"];
  const std::map<std::string, std::string> types = {
      {"LORA", "lora"},           {"HRA", "hra"},       {"OFT", "oft"},
      {"ENCODER", "encoder"},     {"PREFIX", "prefix"}, {"TOKEN", "token"},
      {"HYBRID", "token+encoder"}};
  std::string known;
  if (wanted != false && !wanted.is_null()) {
    const auto at = types.find(wanted.is_string() ? wanted.get<std::string>() : "");
    if (at == types.end())
      fail(file_, cat("peft_config.json asks for ", wanted.dump(),
                      "; this version reads LORA, HRA, OFT, ENCODER, PREFIX, TOKEN and HYBRID"));
    known = at->second;
  }
  if (known != type)
    fail(file_, cat("peft_config.json asks for ", wanted.dump(), ", the file holds ",
                    type.empty() ? "no adapter" : "arrays of " + type));
}

ScpeftAdapter Reader::read() {
  ScpeftAdapter out;
  const AdapterOptions all = options();
  check_kind(all.type);
  if (all.type.empty()) return out;
  out.adapter = make_adapter(all, backbone_, 0);

  const Names& n = names();
  Arrays arrays(out);
  for (const AdapterOptions& part : all.parts.empty() ? std::vector{all} : all.parts) {
    if (part.type == "token") {
      arrays.add_bottleneck(n.token, "token_adapter");
      continue;
    }
    for (int layer = part.first_layer; layer <= part.last_layer; ++layer) {
      if (part.type == "prefix") arrays.add(path(layer) + n.prefix, path(layer) + ".prefix");
      if (part.type == "encoder")
        arrays.add_bottleneck(path(layer) + n.space, path(layer) + ".space_adapter");
      if (part.type == "encoder" && part.layout == "parallel")
        arrays.add_bottleneck(path(layer) + n.mlp, path(layer) + ".mlp_adapter");
      const auto module = [&](const char* projection) {
        return "base_model.model." +
               backbone_.module_path(cat("layers.", layer, ".attn.", projection));
      };
      using Form = ScpeftAdapter::Array::Form;
      for (const char* projection : {"q", "k", "v"}) {
        if (part.type == "hra")
          arrays.add(path(layer) + kHra, module(projection) + ".hra_u", Form::same);
        if (part.type == "oft")
          arrays.add(path(layer) + kOft, module(projection) + ".oft_R.weight", Form::rotation);
      }
      if (part.type == "hra")
        out.trained_with_it.push_back(path(layer) + ".self_attn.in_proj_bias");
      if (part.type != "lora") continue;
      for (const char* side : {"A", "B"})
        for (const char* projection : {"q", "v"})
          arrays.add(cat(path(layer), kLora, side),
                     cat(module(projection), ".lora_", side, ".weight"));
      out.trained_with_it.push_back(path(layer) + ".self_attn.in_proj_bias");
    }
  }
  arrays.fill(file_);
  return out;
}

}  // namespace

ScpeftAdapter read_scpeft_adapter(const nlohmann::json& config, const Checkpoint& file,
                                  Backbone& backbone) {
  return Reader(config, file, backbone).read();
}

}  // namespace scgraft
