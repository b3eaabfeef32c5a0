// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "app/common_flags.h"
#include "app/session.h"

namespace scgraft {

struct VerbText {
  std::string name;
  std::string summary;                // one line, for the list of verbs
  std::vector<std::string> examples;  // two commands to copy; --help starts with them
};

// Adds a verb to the program or, for `config check`, to its parent verb. `body` runs after all
// arguments are read; a parent verb has no body and asks for one of its own verbs.
//
//   auto options = std::make_shared<Options>();
//   CLI::App& verb = add_verb(root, session, {"inspect", "say what is in a file", {...}},
//                             [&session, options] { inspect(session, *options); });
//   verb.add_option("FILE", options->file, "file or folder")->required();
//   add_common_flags(verb, session.flags(), {});
CLI::App& add_verb(CLI::App& parent, Session& session, const VerbText& text,
                   std::function<void()> body = nullptr);

}  // namespace scgraft
