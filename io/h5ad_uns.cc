// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_uns.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

bool is_whole(const json& value) {
  constexpr auto kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (value.is_number_unsigned()) return value.get<uint64_t>() <= kLargest;
  return value.is_number_integer();
}

void add_list(hdf5::OutNode& parent, const std::string& name, const json& list) {
  const auto all = [&list](auto&& is) { return std::all_of(list.begin(), list.end(), is); };
  if (list.empty()) {
    parent.add_array<double>(name, std::vector<double>());
  } else if (all([](const json& v) { return v.is_string(); })) {
    parent.add_strings(name, list.get<std::vector<std::string>>());
  } else if (all([](const json& v) { return v.is_boolean(); })) {
    std::vector<uint8_t> values;
    for (const json& v : list) values.push_back(v.get<bool>() ? 1 : 0);
    parent.add_booleans(name, values);
  } else if (all(is_whole)) {
    parent.add_array(name, list.get<std::vector<int64_t>>());
  } else if (all([](const json& v) { return v.is_number(); })) {
    parent.add_array(name, list.get<std::vector<double>>());
  } else {
    throw TypeError(cat("uns: ", escaped(parent.path()), "/", escaped(name),
                        ": a list of texts, numbers or truth values was wanted"));
  }
}

}  // namespace

void require_element_name(const std::string& name) {
  if (!name.empty() && name != "." && name != ".." && is_utf8(name) &&
      name.find_first_of(std::string_view("/\0", 2)) == std::string::npos)
    return;
  ConfigError error(cat("\"", escaped(name), "\" cannot name an element of an .h5ad file"),
                    "E-SLOT-NAME");
  error.set_hint("choose a name without \"/\", as in --key-added scgraft");
  throw error;
}

void add_json(hdf5::OutNode& parent, const std::string& name, const json& value) {
  require_element_name(name);
  if (value.is_null()) return;
  if (value.is_object()) {
    hdf5::OutNode group = parent.add_group(name, "dict", "0.1.0");
    for (const auto& [key, member] : value.items()) add_json(group, key, member);
  } else if (value.is_array()) {
    add_list(parent, name, value);
  } else if (value.is_string()) {
    parent.add_text(name, value.get<std::string>());
  } else if (value.is_boolean()) {
    parent.add_boolean(name, value.get<bool>());
  } else if (is_whole(value)) {
    parent.add_integer(name, value.get<int64_t>());
  } else if (value.is_number_unsigned()) {
    parent.add_text(name, std::to_string(value.get<uint64_t>()));
  } else if (value.is_number()) {
    parent.add_real(name, value.get<double>());
  } else {
    throw TypeError(cat("uns: ", escaped(name), ": binary values have no place in an .h5ad file"));
  }
}

}  // namespace scgraft
