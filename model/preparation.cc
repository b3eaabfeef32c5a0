// SPDX-License-Identifier: Apache-2.0
#include "model/preparation.h"

#include <algorithm>
#include <map>
#include <type_traits>

#include "io/text.h"
#include "model/scfoundation/cell_tokenizer.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "scgraft-preprocess";
constexpr int64_t kVersion = 2;

void check(bool condition, const char* field, const std::string& wanted) {
  if (!condition) throw ConfigError(cat("preparation: ", field, " must be ", wanted), "E-PREPARE");
}

[[noreturn]] void refuse(const std::string& file, const std::string& message,
                         const std::string& field = {}) {
  ModelError error(cat(escaped(file), ": ", message), "E-PREPARE");
  error.set_hint("use the preprocess.json that was written with the adapter");
  error.set_where(file, field);
  throw error;
}

// Takes fields out of an object one by one; what is left at the end is unknown.
class Fields {
 public:
  Fields(const json& object, const std::string& file) : file_(file) {
    if (!object.is_object()) refuse(file, "wanted a JSON object that says how cells are prepared");
    for (const auto& [key, value] : object.items()) left_[key] = &value;
  }

  template <class T>
  void take(const char* name, T& to) {
    const auto found = left_.find(name);
    if (found == left_.end()) refuse(file_, cat("\"", name, "\" is missing"), name);
    const json& value = *found->second;
    if (!fits<T>(value))
      refuse(file_,
             cat("\"", name, "\" has a value of the wrong type: ", escaped(value.dump(), 60)),
             name);
    to = value.get<T>();
    left_.erase(found);
  }

  void finish() const {
    if (!left_.empty())
      refuse(file_,
             cat("\"", escaped(left_.begin()->first),
                 "\" is not known; the file may come from a newer version of scgraft"),
             escaped(left_.begin()->first));
  }

 private:
  template <class T>
  static bool fits(const json& value) {
    if constexpr (std::is_same_v<T, std::string>) return value.is_string();
    if constexpr (std::is_same_v<T, double>) return value.is_number();
    if constexpr (std::is_same_v<T, int64_t>) return value.is_number_integer();
    if constexpr (std::is_same_v<T, uint64_t>) return value.is_number_unsigned();
    if constexpr (std::is_same_v<T, std::vector<std::string>>)
      return value.is_array() && std::all_of(value.begin(), value.end(),
                                             [](const json& name) { return name.is_string(); });
    return false;
  }

  const std::string& file_;
  std::map<std::string, const json*> left_;
};

}  // namespace

namespace {

constexpr const char* kModels = "wanted scgpt, geneformer, scbert or scfoundation";

bool known_model(const std::string& model) {
  return model == "scgpt" || model == "geneformer" || model == "scbert" || model == "scfoundation";
}

// Calls field(name, value) for what a file of the model holds beside format, version and model.
template <class P, class F>
void for_each_field(P& p, F field) {
  field("layer", p.layer);
  field("gene_key", p.gene_key);
  if (p.model == "scgpt") {
    field("target_sum", p.target_sum);
    field("hvg", p.hvg);
    field("hvg_count", p.hvg_count);
    field("n_bins", p.n_bins);
    field("max_length", p.max_length);
    field("seed", p.seed);
    field("genes", p.genes);
    return;
  }
  if (p.model == "geneformer") field("max_length", p.max_length);
  if (p.model == "scfoundation") field("target_depth", p.target_depth);
  field("dictionaries", p.dictionaries);
  field("dictionary_fingerprint", p.dictionary_fingerprint);
}

}  // namespace

void Preparation::ask_for_depth(const std::string& depth) {
  if (depth.empty()) return;
  if (model != "scfoundation")
    throw ConfigError(cat("cells of ", model,
                          " ask for no sequencing depth: a target depth is for "
                          "scFoundation"),
                      "E-PREPARE");
  TargetDepth::parse(depth);
  target_depth = depth;
}

void Preparation::validate() const {
  check(target_sum > 0 && target_sum < 1e12, "target_sum", "above 0");
  check(hvg == "none" || hvg == "seurat_v3" || hvg == "cell_ranger", "hvg",
        cat("none, seurat_v3 or cell_ranger, not \"", escaped(hvg, 40), "\""));
  check(hvg == "none" || hvg_count > 0, "hvg_count", cat("at least 1 with hvg ", hvg));
  check(hvg == "none" || model == "scgpt", "hvg",
        cat("none for ", model, ", which chooses its genes itself"));
  check(n_bins >= 3 && n_bins <= 65536, "n_bins", cat("3 to 65536, not ", n_bins));
  check(max_length >= 2 && max_length <= 1 << 20, "max_length",
        cat("2 to ", 1 << 20, ", not ", max_length));
  if (model == "scfoundation") TargetDepth::parse(target_depth);
  check(!layer.empty(), "layer", "auto, X, raw or the name of a layer");
}

json Preparation::to_json() const {
  json out = {{"format", kFormat}, {"version", kVersion}, {"model", model}};
  for_each_field(*this, [&](const char* name, const auto& value) { out[name] = value; });
  return out;
}

Preparation Preparation::from_json(const json& json, const std::string& file) {
  Preparation p;
  Fields fields(json, file);
  std::string format;
  int64_t version = 0;
  fields.take("format", format);
  fields.take("version", version);
  if (format != kFormat || version < 1 || version > kVersion)
    refuse(file, cat("wanted format ", kFormat, " version 1 to ", kVersion, ", got \"",
                     escaped(format, 40), "\" version ", version));
  if (version > 1) fields.take("model", p.model);
  if (!known_model(p.model))
    refuse(file, cat("\"model\" is \"", escaped(p.model, 40), "\", ", kModels), "model");
  for_each_field(p, [&](const char* name, auto& value) { fields.take(name, value); });
  fields.finish();
  try {
    p.validate();
  } catch (const ConfigError& error) {
    refuse(file, error.what());
  }
  return p;
}

void require_preparation_of(const Preparation& preparation, const std::string& kind) {
  if (preparation.model == kind) return;
  ModelError error(cat("cells are prepared for ", escaped(preparation.model, 40),
                       ", the model is of the kind ", kind),
                   "E-PREPARE");
  error.set_hint("use the base model that the adapter was trained on");
  throw error;
}

}  // namespace scgraft
