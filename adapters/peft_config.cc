// SPDX-License-Identifier: Apache-2.0
#include "adapters/peft_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "io/file_error.h"
#include "io/text.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

using nlohmann::json;

constexpr const char* kModulesOnly = "SCGRAFT_MODULES";
// The release whose files these are; its loader reads newer and older ones alike.
constexpr const char* kPeftVersion = "0.20.0";

std::string peft_type(const std::string& kind) {
  if (kind.empty()) return kModulesOnly;
  if (kind == "lora") return "LORA";
  if (kind == "hra") return "HRA";
  std::string name = "SCGRAFT_" + kind;
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

// The kind, or kinds joined by +, behind a peft_type; empty when it is none of ours.
std::string kind_of(const std::string& type) {
  if (type == "LORA") return "lora";
  if (type == "HRA") return "hra";
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
  void refuse_entries(const char* key) const {
    const json* value = find(key);
    if (value != nullptr && !value->empty())
      fail(cat("has ", key, ", which this version does not compute"), key);
  }

 private:
  const json& object_;
  const std::string& file_;
};

std::string known_types() {
  std::string text;
  for (const std::string& kind : adapter_kinds()) text += peft_type(kind) + ", ";
  return text + "several of them joined by +, " + kModulesOnly;
}

}  // namespace

json to_json(const PeftConfig& config) {
  json out = {
      {"peft_type", peft_type(config.kind)},
      {"base_model_name_or_path", config.base_path},
      {"revision", nullptr},
      {"task_type", nullptr},
      {"inference_mode", true},
      {"modules_to_save", nullptr},
      {"peft_version", kPeftVersion},
  };
  if (!config.modules_to_save.empty()) out["modules_to_save"] = config.modules_to_save;
  if (config.kind != "lora" && config.kind != "hra") return out;
  out["target_modules"] = config.target_modules;
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
  out["rank_pattern"] = json::object();
  out["alpha_pattern"] = json::object();
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
  if (config.kind != "lora" && config.kind != "hra") return config;

  config.target_modules = reader.texts("target_modules");
  const double rank = reader.number("r", 8);
  if (!(rank >= 1 && rank <= 65536) || rank != std::floor(rank))
    reader.fail(cat("r is ", rank, ", a number of rows from 1 to 65536 is needed"), "r");
  config.rank = static_cast<int64_t>(rank);
  config.alpha = reader.number("lora_alpha", 8);
  config.dropout = reader.number("lora_dropout", 0);
  if (reader.flag("use_rslora")) config.alpha *= std::sqrt(rank);  // alpha / sqrt(r)
  for (const char* key : {"use_dora", "fan_in_fan_out", "lora_bias", "apply_GS"})
    reader.refuse_flag(key);
  for (const char* key : {"rank_pattern", "alpha_pattern", "layer_replication",
                          "trainable_token_indices", "target_parameters"})
    reader.refuse_entries(key);
  const std::string bias = reader.text("bias");
  if (!bias.empty() && bias != "none")
    reader.fail(cat("bias is \"", escaped(bias), "\"; this version reads \"none\""), "bias");
  return config;
}

}  // namespace scgraft
