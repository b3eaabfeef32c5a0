// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "app/session.h"

namespace scgraft {

// Reads the arguments (without the program's name) into `session`: its flags, and the verb that
// session.run_verb() then runs. Returns text for stdout instead when --help or --version was given.
//
// Throws ConfigError (exit 2): E-VERB for an unknown or missing verb, E-FLAG for an unknown flag,
// both naming the nearest known one, and E-USAGE for everything else that is wrong with them.
std::optional<std::string> parse_command_line(const std::vector<std::string>& arguments,
                                              Session& session);

}  // namespace scgraft
