// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "training/run_config.h"

namespace scgraft {

// A configuration key that a flag of the command line sets.
struct FlagValue {
  std::string key;    // "train.learning_rate"
  std::string value;  // as typed
  std::string flag;   // "--learning-rate"
};

// Where each value came from, by full key name: "default", "run.yaml:7", "--set",
// "--learning-rate".
using Origins = std::map<std::string, std::string>;

// The configuration of a run: flags beat `sets` ("section.key=value"), `sets` beat the file, the
// file beats the defaults. null keeps the default. Relative paths are relative to the working
// directory.
//
// Throws ConfigError (exit 2): those of read_yaml(), E-CONFIG-VERSION for a newer schema_version,
// and E-CONFIG listing every violation at once, one per line: unknown keys with the nearest known
// one, keys in a wrong section, values of a wrong type or out of range, contradicting keys.
RunConfig load_run_config(const std::optional<std::filesystem::path>& file,
                          const std::vector<std::string>& sets, const std::vector<FlagValue>& flags,
                          Origins* origins = nullptr);

// The configuration as YAML, every key with its origin as a comment. Loading it again gives the
// same configuration.
std::string resolved_yaml(const RunConfig& config, const Origins& origins);

// An example to start from: every key with its default and its help.
std::string example_yaml();

}  // namespace scgraft
