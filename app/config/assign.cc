// SPDX-License-Identifier: Apache-2.0
#include "app/config/assign.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <set>

#include "app/duration.h"
#include "app/nearest.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

std::string wrong(const ConfigKey& key, const std::string& got) {
  return cat(key.full_name(), " must be ", key.expected(), ", got ", got);
}

std::string quoted(const std::string& text) { return cat("\"", escaped(text), "\""); }

bool within(const ConfigKey::Limits& limits, double value) {
  return (limits.low_open ? value > limits.low : value >= limits.low) &&
         (limits.high_open ? value < limits.high : value <= limits.high);
}

template <class Number>
std::optional<Number> parse(std::string_view text) {
  if (text.starts_with("+")) text.remove_prefix(1);
  Number number{};
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<double> seconds_of(const std::string& text) {
  try {
    return parse_duration(text);
  } catch (const ConfigError&) {
    return std::nullopt;
  }
}

template <class Number>
std::string assign_number(const ConfigKey& key, const std::string& text,
                          std::optional<Number> number, Number* field) {
  if (key.accepts_auto && text == "auto") return {};
  if (!number || !std::isfinite(static_cast<double>(*number)) ||
      !within(key.limits, static_cast<double>(*number)))
    return wrong(key, quoted(text));
  *field = *number;
  return {};
}

std::string assign_choice(const ConfigKey& key, const std::string& text, std::string* field) {
  if (std::find(key.choices.begin(), key.choices.end(), text) == key.choices.end()) {
    const std::string near = nearest(text, key.choices);
    return wrong(key, quoted(text)) + (near.empty() ? "" : cat("; did you mean ", near, "?"));
  }
  *field = text;
  return {};
}

std::string assign_joined(const ConfigKey& key, const std::string& text, std::string* field) {
  std::set<std::string> seen;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('+', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    if (std::string problem = assign_choice(key, part, &part); !problem.empty()) return problem;
    if (!seen.insert(part).second) return cat(key.full_name(), " names ", quoted(part), " twice");
    begin = end + 1;
  }
  *field = text;
  return {};
}

// Replaces ${env:NAME}.
std::string assign_path(const ConfigKey& key, std::string text, std::string* field) {
  constexpr std::string_view kOpen = "${env:";
  for (size_t at = text.find(kOpen); at != std::string::npos; at = text.find(kOpen, at)) {
    const size_t end = text.find('}', at);
    if (end == std::string::npos) return cat(key.full_name(), ": ${env:NAME} has no end");
    const std::string name = text.substr(at + kOpen.size(), end - at - kOpen.size());
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return cat(key.full_name(), ": the environment has no ", escaped(name));
    text.replace(at, end + 1 - at, value);
    at += std::string_view(value).size();
  }
  *field = text;
  return {};
}

std::string assign_list(const ConfigKey& key, const YamlNode& value,
                        std::vector<std::string>* field) {
  std::vector<std::string> list;
  const std::vector<YamlNode> single(value.kind == YamlNode::Kind::scalar ? 1 : 0, value);
  for (const YamlNode& item : single.empty() ? value.items : single) {
    if (item.kind != YamlNode::Kind::scalar) return wrong(key, "something that is no text in it");
    std::string text = item.text;
    if (key.type == ConfigType::words)
      if (std::string problem = assign_choice(key, item.text, &text); !problem.empty())
        return problem;
    if (std::find(list.begin(), list.end(), text) != list.end())
      return cat(key.full_name(), " names ", quoted(text), " twice");
    list.push_back(std::move(text));
  }
  if (list.empty() && key.type == ConfigType::words) return wrong(key, "an empty list");
  *field = std::move(list);
  return {};
}

}  // namespace

bool is_list(const ConfigKey& key) {
  return key.type == ConfigType::words || key.type == ConfigType::texts;
}

std::string assign(const ConfigKey& key, const YamlNode& value, RunConfig& config) {
  if (value.kind == YamlNode::Kind::null) return {};
  if (value.kind == YamlNode::Kind::map) return wrong(key, "a section");
  const ConfigField field = key.field(config);
  if (is_list(key)) return assign_list(key, value, std::get<std::vector<std::string>*>(field));
  if (value.kind == YamlNode::Kind::list) return wrong(key, "a list");
  const std::string& text = value.text;
  switch (key.type) {
    case ConfigType::text:
      *std::get<std::string*>(field) = text;
      return {};
    case ConfigType::path:
      return assign_path(key, text, std::get<std::string*>(field));
    case ConfigType::choice:
      return assign_choice(key, text, std::get<std::string*>(field));
    case ConfigType::joined:
      return assign_joined(key, text, std::get<std::string*>(field));
    case ConfigType::integer:
      return assign_number(key, text, parse<int64_t>(text), std::get<int64_t*>(field));
    case ConfigType::real:
      return assign_number(key, text, parse<double>(text), std::get<double*>(field));
    case ConfigType::duration:
      return assign_number(key, text, seconds_of(text), std::get<double*>(field));
    case ConfigType::words:
    case ConfigType::texts:
      break;
  }
  return {};
}

}  // namespace scgraft
