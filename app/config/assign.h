// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "app/config/schema.h"
#include "app/config/yaml_tree.h"

namespace scgraft {

// Gives a key the value of a node, typed and checked by the key's row. Returns what is wrong with
// it, e.g. `adapter.r must be a whole number from 1 to 512, got "many"`, or nothing. null keeps
// the value as it is.
std::string assign(const ConfigKey& key, const YamlNode& value, RunConfig& config);

// True for keys whose value is a list.
bool is_list(const ConfigKey& key);

}  // namespace scgraft
