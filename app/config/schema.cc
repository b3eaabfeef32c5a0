// SPDX-License-Identifier: Apache-2.0
#include "app/config/schema.h"

#include <fmt/format.h>

#include <algorithm>

#include "app/nearest.h"

namespace scgraft {
namespace {

bool is_called(const ConfigKey& key, std::string_view name) {
  return key.name == name ||
         std::find(key.aliases.begin(), key.aliases.end(), name) != key.aliases.end();
}

nlohmann::ordered_json schema_of(const ConfigKey& key) {
  nlohmann::ordered_json schema;
  switch (key.type) {
    case ConfigType::text:
    case ConfigType::path:
      schema["type"] = {"string", "null"};
      break;
    case ConfigType::choice:
      schema["enum"] = key.choices;
      break;
    case ConfigType::joined: {
      std::string any;
      for (const std::string& choice : key.choices) any += (any.empty() ? "" : "|") + choice;
      schema["pattern"] = fmt::format("^({0})([+]({0}))*$", any);
      schema["type"] = "string";
      break;
    }
    case ConfigType::words:
      schema["type"] = "array";
      schema["items"] = {{"enum", key.choices}};
      break;
    case ConfigType::texts:
      schema["type"] = "array";
      schema["items"] = {{"type", "string"}};
      break;
    case ConfigType::duration:
      schema["type"] = {"number", "string"};
      break;
    case ConfigType::integer:
    case ConfigType::real: {
      schema["type"] = key.type == ConfigType::integer ? "integer" : "number";
      schema[key.limits.low_open ? "exclusiveMinimum" : "minimum"] = key.limits.low;
      schema[key.limits.high_open ? "exclusiveMaximum" : "maximum"] = key.limits.high;
      break;
    }
  }
  if (key.accepts_auto) schema = {{"anyOf", {schema, {{"const", "auto"}}}}};
  schema["description"] = key.help;
  schema["default"] = value_of(key, RunConfig());
  return schema;
}

}  // namespace

std::string ConfigKey::full_name() const {
  return section.empty() ? std::string(name) : fmt::format("{}.{}", section, name);
}

std::string ConfigKey::expected() const {
  switch (type) {
    case ConfigType::text:
      return "text";
    case ConfigType::path:
      return "a path";
    case ConfigType::choice:
      return "one of " + joined(choices);
    case ConfigType::joined:
      return "one of " + joined(choices) + ", or several joined by +";
    case ConfigType::words:
      return "a list of " + joined(choices);
    case ConfigType::texts:
      return "a list of texts";
    case ConfigType::duration:
      return "seconds or a time such as 3h50m";
    case ConfigType::integer:
    case ConfigType::real:
      break;
  }
  return fmt::format("a {} {} {} {} {}", type == ConfigType::integer ? "whole number" : "number",
                     limits.low_open ? "above" : "from", limits.low,
                     limits.high_open ? "to below" : "to", limits.high) +
         (accepts_auto ? ", or auto" : "");
}

std::vector<std::string> config_sections() {
  std::vector<std::string> sections;
  for (const ConfigKey& key : config_keys())
    if (!key.section.empty() && (sections.empty() || sections.back() != key.section))
      sections.emplace_back(key.section);
  return sections;
}

const ConfigKey* find_key(std::string_view section, std::string_view name) {
  for (const ConfigKey& key : config_keys())
    if (key.section == section && is_called(key, name)) return &key;
  return nullptr;
}

const ConfigKey* find_key(std::string_view full_name) {
  const size_t dot = full_name.find('.');
  if (dot != std::string_view::npos)
    return find_key(full_name.substr(0, dot), full_name.substr(dot + 1));
  if (const ConfigKey* key = find_key("", full_name)) return key;
  const ConfigKey* found = nullptr;
  for (const std::string& section : config_sections())
    if (const ConfigKey* key = find_key(section, full_name)) {
      if (found != nullptr) return nullptr;
      found = key;
    }
  return found;
}

nlohmann::json value_of(const ConfigKey& key, const RunConfig& config) {
  RunConfig copy = config;  // fields are reached through a mutable configuration
  return std::visit([](const auto* field) { return nlohmann::json(*field); }, key.field(copy));
}

nlohmann::ordered_json config_json_schema() {
  nlohmann::ordered_json root = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                                 {"title", "scgraft run configuration"},
                                 {"type", "object"},
                                 {"additionalProperties", false},
                                 {"properties", {{"schema_version", {{"const", kConfigVersion}}}}}};
  for (const ConfigKey& key : config_keys()) {
    nlohmann::ordered_json* place = &root["properties"];
    if (!key.section.empty()) {
      nlohmann::ordered_json& section = (*place)[std::string(key.section)];
      section["type"] = "object";
      section["additionalProperties"] = false;
      place = &section["properties"];
    }
    nlohmann::ordered_json schema = schema_of(key);
    for (const std::string& alias : key.aliases) (*place)[alias] = schema;
    (*place)[std::string(key.name)] = std::move(schema);
  }
  return root;
}

}  // namespace scgraft
