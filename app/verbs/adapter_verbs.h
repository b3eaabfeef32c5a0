// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <CLI/CLI.hpp>

#include "app/session.h"

namespace scgraft {

// Verbs under `adapter` with a file of their own.
void add_adapter_diff(CLI::App& parent, Session& session);
void add_adapter_import(CLI::App& parent, Session& session);
void add_adapter_list(CLI::App& parent, Session& session);

}  // namespace scgraft
