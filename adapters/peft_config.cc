// SPDX-License-Identifier: Apache-2.0
#include "adapters/peft_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "io/file_error.h"
#include "io/text.h"
#include "kernels/attention_mask.h"
#include "runtime/cat.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

using nlohmann::json;

constexpr const char* kModulesOnly = "SCGRAFT_MODULES";
// The release whose files these are; its loader reads newer and older ones alike.
constexpr const char* kPeftVersion = "0.20.0";

std::string peft_type(const std::string& kind, bool every_layer = true) {
  if (kind == "prefix_tuning" && every_layer) return "PREFIX_TUNING";
  if (kind.empty()) return kModulesOnly;
  if (kind == "lora") return "LORA";
  if (kind == "hra") return "HRA";
  if (kind == "oft") return "OFT";
  std::string name = "SCGRAFT_" + kind;
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

// The kind, or kinds joined by +, behind a peft_type; empty when it is none of ours.
std::string kind_of(const std::string& type) {
  if (type == "LORA") return "lora";
  if (type == "HRA") return "hra";
  if (type == "OFT") return "oft";
  if (type == "PREFIX_TUNING") return "prefix_tuning";
  constexpr std::string_view kOurs = "SCGRAFT_";
  if (!type.starts_with(kOurs)) return "";
  std::string name = type.substr(kOurs.size());
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return is_adapter_type(name, true) ? name : "";
}

class Reader {
 public:
  Reader(const json& object, const std::string& file) : object_(object), file_(file) {}

  [[noreturn]] void fail(const std::string& message, const std::string& key) const {
    throw_file_error(FileKind::model, file_, message, "E-ADAPTER", "", key);
  }
  // A value that is absent or null is not there.
  const json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  std::string text(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return "";
    if (!value->is_string()) fail(cat(key, " is not a string"), key);
    return value->get<std::string>();
  }
  double number(const char* key, double otherwise) const {
    const json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) fail(cat(key, " is not a number"), key);
    return value->get<double>();
  }
  bool flag(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) fail(cat(key, " is neither true nor false"), key);
    return value->get<bool>();
  }
  std::vector<std::string> texts(const char* key) const {
    const json* value = find(key);
    std::vector<std::string> out;
    if (value == nullptr) return out;
    if (value->is_string()) return {value->get<std::string>()};  // PEFT: a regular expression
    const bool fits = value->is_array() && std::all_of(value->begin(), value->end(),
                                                       [](const json& v) { return v.is_string(); });
    if (!fits) fail(cat(key, " is not a list of strings"), key);
    return value->get<std::vector<std::string>>();
  }
  void refuse_flag(const char* key) const {
    if (flag(key)) fail(cat("asks for ", key, ", which this version does not compute"), key);
  }
  // Whether there is something: a value that is neither false nor an empty list, object or text.
  bool has_entries(const char* key) const {
    const json* value = find(key);
    if (value == nullptr || *value == false) return false;
    return value->is_string() ? !value->get_ref<const std::string&>().empty() : !value->empty();
  }
  std::map<std::string, double> numbers(const char* key) const {
    const json* value = find(key);
    std::map<std::string, double> out;
    if (value == nullptr) return out;
    if (!value->is_object()) fail(cat(key, " is not an object of numbers"), key);
    for (const auto& [name, number] : value->items()) {
      if (!number.is_number()) fail(cat(key, " is not an object of numbers"), key);
      out[name] = number.get<double>();
    }
    return out;
  }

 private:
  const json& object_;
  const std::string& file_;
};

// Kinds with target modules, whose files have all of PEFT's configuration.
bool is_beside_projections(const std::string& kind) {
  return kind == "lora" || kind == "hra" || kind == "oft";
}

double whole_number(const Reader& reader, const char* key, double otherwise, double least,
                    double most) {
  const double value = reader.number(key, otherwise);
  if (!(value >= least && value <= most) || value != std::floor(value))
    reader.fail(
        cat(key, " is ", value, ", a whole number from ", least, " to ", most, " is needed"), key);
  return value;
}

void require_no_bias(const Reader& reader) {
  const std::string bias = reader.text("bias");
  if (!bias.empty() && bias != "none")
    reader.fail(cat("bias is \"", escaped(bias), "\"; this version reads \"none\""), "bias");
}

// r blocks, or blocks of a width; the other one is 0.
void read_oft(const Reader& reader, PeftConfig& config) {
  if (reader.find("oft_block_size") == nullptr)
    reader.fail(
        "has no oft_block_size: it was written by PEFT before 0.14, of which the "
        "parameters are others",
        "oft_block_size");
  config.blocks = static_cast<int64_t>(whole_number(reader, "r", 0, 0, 65536));
  config.block_size = static_cast<int64_t>(whole_number(reader, "oft_block_size", 0, 0, 65536));
  if ((config.blocks == 0) == (config.block_size == 0))
    reader.fail("needs one of r and oft_block_size, and 0 for the other", "r");
  for (const char* key : {"block_share", "use_cayley_neumann", "fan_in_fan_out"})
    reader.refuse_flag(key);
  if (reader.flag("coft")) config.constraint = reader.number("eps", 6e-5);
}

std::string known_types() {
  std::string text;
  for (const std::string& kind : adapter_kinds()) text += peft_type(kind) + ", ";
  return text + "several of them joined by +, " + kModulesOnly;
}

// What the configurations of LoRA and HRA of PEFT 0.21 hold.
void warn_of_unknown_keys(const json& object, const std::string& file) {
  static const std::set<std::string_view> kKnown = {
      "alora_invocation_tokens",
      "alpha_pattern",
      "apply_GS",
      "arrow_config",
      "auto_mapping",
      "base_model_name_or_path",
      "bias",
      "corda_config",
      "ensure_weight_tying",
      "eva_config",
      "exclude_modules",
      "fan_in_fan_out",
      "inference_mode",
      "init_lora_weights",
      "init_weights",
      "kasa_config",
      "layer_replication",
      "layers_pattern",
      "layers_to_transform",
      "loftq_config",
      "lora_alpha",
      "lora_bias",
      "lora_dropout",
      "lora_ga_config",
      "megatron_config",
      "megatron_core",
      "modules_to_save",
      "monteclora_config",
      "peft_type",
      "peft_version",
      "qalora_group_size",
      "r",
      "rank_pattern",
      "revision",
      "target_modules",
      "target_parameters",
      "task_type",
      "trainable_token_indices",
      "use_bdlora",
      "use_dora",
      "use_qalora",
      "use_rslora",
      "velora_config",
  };
  std::string unknown;
  for (const auto& [key, value] : object.items())
    if (!kKnown.contains(key)) unknown += cat(unknown.empty() ? "" : ", ", escaped(key, 60));
  if (!unknown.empty())
    log_warning("W-ADAPTER-CONFIG", escaped(file),
                ": left out what this version does not know: ", unknown);
}

}  // namespace

double PeftConfig::scale(int64_t module_rank, double module_alpha) const {
  const auto r = static_cast<double>(module_rank);
  return module_alpha / (rank_stabilised ? std::sqrt(r) : r);
}

json to_json(const PeftConfig& config) {
  json out = {
      {"peft_type", peft_type(config.kind, config.every_layer)},
      {"base_model_name_or_path", config.base_path},
      {"revision", nullptr},
      {"task_type", nullptr},
      {"inference_mode", true},
      {"modules_to_save", nullptr},
      {"peft_version", kPeftVersion},
  };
  if (!config.modules_to_save.empty()) out["modules_to_save"] = config.modules_to_save;
  if (config.kind == "prefix_tuning" && config.every_layer) {
    // Without a task PEFT takes the keys and values in and leaves them unused.
    out["task_type"] = config.modules_to_save.empty() ? "FEATURE_EXTRACTION" : "SEQ_CLS";
    out["num_virtual_tokens"] = config.tokens;
    out["token_dim"] = config.dim;
    out["num_transformer_submodules"] = 1;
    out["num_attention_heads"] = config.heads;
    out["num_layers"] = config.layers;
    out["encoder_hidden_size"] = config.dim;
    out["prefix_projection"] = false;
  }
  if (!is_beside_projections(config.kind)) return out;
  out["target_modules"] = config.target_modules;
  if (config.kind == "oft") {
    out["r"] = config.block_size > 0 ? 0 : config.blocks;
    out["oft_block_size"] = config.block_size;
    out["bias"] = "none";
    out["block_share"] = false;
    out["coft"] = config.constraint > 0;
    out["eps"] = config.constraint > 0 ? config.constraint : 6e-5;
    out["fan_in_fan_out"] = false;
    out["init_weights"] = true;
    out["module_dropout"] = 0.0;
    out["use_cayley_neumann"] = false;
    return out;
  }
  out["r"] = config.rank;
  out["bias"] = "none";
  if (config.kind == "hra") {
    out["apply_GS"] = false;
    out["init_weights"] = true;
    return out;
  }
  out["lora_alpha"] = config.alpha;
  if (config.alpha == std::floor(config.alpha) && std::abs(config.alpha) < 1e15)
    out["lora_alpha"] = static_cast<int64_t>(config.alpha);  // as PEFT declares it
  out["lora_dropout"] = config.dropout;
  out["fan_in_fan_out"] = false;
  out["rank_pattern"] = config.ranks;
  out["alpha_pattern"] = config.alphas;
  out["use_rslora"] = false;
  out["use_dora"] = false;
  return out;
}

PeftConfig peft_config_from_json(const json& object, const std::string& file) {
  const Reader reader(object, file);
  if (!object.is_object() || reader.find("peft_type") == nullptr)
    reader.fail("is no adapter configuration: it has no peft_type", "peft_type");
  PeftConfig config;
  const std::string type = reader.text("peft_type");
  config.kind = kind_of(type);
  if (config.kind.empty() && type != kModulesOnly)
    reader.fail(cat("peft_type is \"", escaped(type), "\"; this version reads ", known_types()),
                "peft_type");
  config.base_path = reader.text("base_model_name_or_path");
  config.modules_to_save = reader.texts("modules_to_save");
  config.every_layer = type == "PREFIX_TUNING";
  if (config.every_layer) {
    config.tokens =
        static_cast<int64_t>(whole_number(reader, "num_virtual_tokens", 0, 1, kPrefixRows));
    config.dim = static_cast<int64_t>(whole_number(reader, "token_dim", 0, 0, 1 << 20));
    config.layers = static_cast<int64_t>(whole_number(reader, "num_layers", 0, 0, 1 << 20));
    config.heads = static_cast<int64_t>(whole_number(reader, "num_attention_heads", 0, 0, 1 << 20));
    if (reader.number("num_transformer_submodules", 1) != 1)
      reader.fail("num_transformer_submodules is not 1: it is of an encoder with a decoder",
                  "num_transformer_submodules");
    return config;
  }
  if (!is_beside_projections(config.kind)) return config;

  config.target_modules = reader.texts("target_modules");
  const json* targets = reader.find("target_modules");
  config.plain_targets = targets != nullptr && targets->is_array();
  for (const char* key : {"exclude_modules", "layers_to_transform", "layers_pattern"})
    if (reader.has_entries(key)) config.plain_targets = false;
  if (config.kind == "oft") {
    read_oft(reader, config);
    require_no_bias(reader);
    return config;
  }
  const double rank = reader.number("r", 8);
  if (!(rank >= 1 && rank <= 65536) || rank != std::floor(rank))
    reader.fail(cat("r is ", rank, ", a number of rows from 1 to 65536 is needed"), "r");
  config.rank = static_cast<int64_t>(rank);
  config.alpha = reader.number("lora_alpha", 8);
  config.dropout = reader.number("lora_dropout", 0);
  config.rank_stabilised = reader.flag("use_rslora");
  for (const auto& [module, value] : reader.numbers("rank_pattern")) {
    if (!(value >= 1 && value <= 65536) || value != std::floor(value))
      reader.fail(cat("rank_pattern has ", value, ", a number of rows from 1 to 65536 is needed"),
                  "rank_pattern");
    config.ranks[module] = static_cast<int64_t>(value);
  }
  config.alphas = reader.numbers("alpha_pattern");
  for (const char* key : {"use_dora", "fan_in_fan_out", "lora_bias", "apply_GS", "use_qalora"})
    reader.refuse_flag(key);
  for (const char* key :
       {"layer_replication", "trainable_token_indices", "target_parameters", "use_bdlora",
        "kasa_config", "monteclora_config", "arrow_config", "alora_invocation_tokens"})
    if (reader.has_entries(key))
      reader.fail(cat("has ", key, ", which this version does not compute"), key);
  const json* start = reader.find("init_lora_weights");
  if (start != nullptr && start->is_string()) {
    const std::string name = start->get<std::string>();
    for (const char* other : {"pissa", "olora", "corda", "loftq", "lora_ga"})
      if (name.starts_with(other))
        reader.fail(cat("init_lora_weights is \"", escaped(name),
                        "\", whose base has other weights; save it with "
                        "path_initial_model_for_weight_conversion"),
                    "init_lora_weights");
  }
  warn_of_unknown_keys(object, file);
  require_no_bias(reader);
  return config;
}

}  // namespace scgraft
