// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

namespace CLI {
class App;
}

namespace scgraft {

class Session;

// A verb of the command line lives in app/verbs/<verb>.cc and is known by two lines: its function's
// declaration here and its row in verbs().
struct VerbEntry {
  void (*add)(CLI::App& root, Session& session);
};
// In the order of `scgraft --help`.
std::span<const VerbEntry> verbs();

void add_adapter(CLI::App& root, Session& session);
void add_annotate(CLI::App& root, Session& session);
void add_attribute(CLI::App& root, Session& session);
void add_config(CLI::App& root, Session& session);
void add_convert(CLI::App& root, Session& session);
void add_doctor(CLI::App& root, Session& session);
void add_embed(CLI::App& root, Session& session);
void add_eval(CLI::App& root, Session& session);
void add_inspect(CLI::App& root, Session& session);
void add_pretrain(CLI::App& root, Session& session);
void add_simulate(CLI::App& root, Session& session);
void add_trace(CLI::App& root, Session& session);
void add_train(CLI::App& root, Session& session);
void add_version(CLI::App& root, Session& session);

}  // namespace scgraft
