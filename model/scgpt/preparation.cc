// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/preparation.h"

#include <algorithm>
#include <map>
#include <type_traits>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "scgraft-preprocess";
constexpr int64_t kVersion = 1;

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

void Preparation::validate() const {
  check(target_sum > 0 && target_sum < 1e12, "target_sum", "above 0");
  check(hvg == "none" || hvg == "seurat_v3" || hvg == "cell_ranger", "hvg",
        cat("none, seurat_v3 or cell_ranger, not \"", escaped(hvg, 40), "\""));
  check(hvg == "none" || hvg_count > 0, "hvg_count", cat("at least 1 with hvg ", hvg));
  check(n_bins >= 3 && n_bins <= 65536, "n_bins", cat("3 to 65536, not ", n_bins));
  check(max_length >= 2 && max_length <= 1 << 20, "max_length",
        cat("2 to ", 1 << 20, ", not ", max_length));
  check(!layer.empty(), "layer", "auto, X, raw or the name of a layer");
}

json Preparation::to_json() const {
  return {{"format", kFormat},
          {"version", kVersion},
          {"layer", layer},
          {"gene_key", gene_key},
          {"target_sum", target_sum},
          {"hvg", hvg},
          {"hvg_count", hvg_count},
          {"n_bins", n_bins},
          {"max_length", max_length},
          {"seed", seed},
          {"genes", genes}};
}

Preparation Preparation::from_json(const json& json, const std::string& file) {
  Preparation p;
  Fields fields(json, file);
  std::string format;
  int64_t version = 0;
  fields.take("format", format);
  fields.take("version", version);
  if (format != kFormat || version != kVersion)
    refuse(file, cat("wanted format ", kFormat, " version ", kVersion, ", got \"",
                     escaped(format, 40), "\" version ", version));
  fields.take("layer", p.layer);
  fields.take("gene_key", p.gene_key);
  fields.take("target_sum", p.target_sum);
  fields.take("hvg", p.hvg);
  fields.take("hvg_count", p.hvg_count);
  fields.take("n_bins", p.n_bins);
  fields.take("max_length", p.max_length);
  fields.take("seed", p.seed);
  fields.take("genes", p.genes);
  fields.finish();
  try {
    p.validate();
  } catch (const ConfigError& error) {
    refuse(file, error.what());
  }
  return p;
}

}  // namespace scgraft
