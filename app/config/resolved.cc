// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "app/config/load.h"
#include "app/config/schema.h"
#include "io/text.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

// JSON scalars and lists are YAML; numbers are the shortest text that reads back the same.
std::string yaml_value(const ConfigKey& key, const RunConfig& config) {
  const nlohmann::json value = value_of(key, config);
  return value.is_string() && value.get<std::string>().empty()
             ? "null"
             : value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

template <class Comment>
std::string yaml_of(const RunConfig& config, const Comment& comment) {
  std::string text = fmt::format("schema_version: {}\n", kConfigVersion);
  std::string_view section;
  for (const ConfigKey& key : config_keys()) {
    if (key.section != section) text += fmt::format("{}:\n", key.section);
    section = key.section;
    const std::string pair =
        fmt::format("{}{}: {}", section.empty() ? "" : "  ", key.name, yaml_value(key, config));
    text += fmt::format("{:<40}  # {}\n", pair, comment(key));
  }
  return text;
}

}  // namespace

std::string resolved_yaml(const RunConfig& config, const Origins& origins) {
  return yaml_of(config, [&](const ConfigKey& key) {
    const auto origin = origins.find(key.full_name());
    return origin == origins.end() ? std::string("default") : escaped(origin->second);
  });
}

std::string example_yaml() {
  return yaml_of(RunConfig(), [](const ConfigKey& key) {
    std::string text(key.help);
    if (key.type == ConfigType::choice || key.type == ConfigType::joined)
      text += ": " + key.expected();
    return text;
  });
}

}  // namespace scgraft
