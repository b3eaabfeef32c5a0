// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <CLI/CLI.hpp>
#include <string>

#include "app/session.h"

namespace scgraft {

// Verbs under `adapter` with a file of their own.
void add_adapter_diff(CLI::App& parent, Session& session);
void add_adapter_export(CLI::App& parent, Session& session);
void add_adapter_import(CLI::App& parent, Session& session);
void add_adapter_list(CLI::App& parent, Session& session);

struct MergeOptions {
  std::string adapter;
  std::string model;  // empty: where the adapter says
  bool allow_base_mismatch = false;
};
// --model and --allow-base-mismatch.
void add_merge_flags(CLI::App& verb, MergeOptions& options);
// `adapter merge`: writes the base model with the adapter inside its weights.
void merge_adapter(Session& session, const MergeOptions& options);

}  // namespace scgraft
