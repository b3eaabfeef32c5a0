// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "training/run_config.h"

namespace scgraft {

// Version of the configuration's layout. A file without one is taken to be of this version.
inline constexpr int64_t kConfigVersion = 1;

enum class ConfigType {
  text,
  path,    // ${env:NAME} is replaced
  choice,  // one of `choices`
  joined,  // one of `choices`, or several joined by +
  integer,
  real,
  duration,  // seconds, or text such as 3h50m
  words,     // list of `choices`
  texts,     // list of any text
};

// The place of a key in a RunConfig; which alternative follows from the key's type.
using ConfigField = std::variant<std::string*, int64_t*, double*, std::vector<std::string>*>;

// What may stand in a configuration, one row per key; checks, --set, help, JSON Schema and the
// resolved file all come from this table.
struct ConfigKey {
  std::string_view section;  // "" for the top level
  std::string_view name;
  ConfigType type;
  ConfigField (*field)(RunConfig&);
  std::string_view help;
  struct Limits {
    double low = 0;
    double high = 0;
    bool low_open = false;  // low itself is not allowed
    bool high_open = false;
  } limits;  // of numbers
  std::vector<std::string> choices;
  std::vector<std::string> aliases;
  bool accepts_auto = false;  // "auto" stands for the default

  std::string full_name() const;  // "train.epochs"
  std::string expected() const;   // "a whole number from 1 to 512"
};

std::span<const ConfigKey> config_keys();
// "adapter", "data", "train".
std::vector<std::string> config_sections();
// By section and name or alias; null when there is none.
const ConfigKey* find_key(std::string_view section, std::string_view name);
// By "train.epochs" or, when only one section has it, "epochs"; null when there is none.
const ConfigKey* find_key(std::string_view full_name);

// A key's value in a configuration, as JSON.
nlohmann::json value_of(const ConfigKey& key, const RunConfig& config);
// JSON Schema (2020-12) of the file.
nlohmann::ordered_json config_json_schema();

}  // namespace scgraft
