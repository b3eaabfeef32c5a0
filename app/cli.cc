// SPDX-License-Identifier: Apache-2.0
#include "app/cli.h"

#include <CLI/CLI.hpp>

#include "app/nearest.h"
#include "app/verbs.h"
#include "io/text.h"
#include "runtime/error.h"
#include "runtime/version.h"

namespace scgraft {
namespace {

// The verb the arguments chose, down to the last one, e.g. `check` of `config check`.
const CLI::App& chosen(const CLI::App& root) {
  const CLI::App* app = &root;
  for (std::vector<CLI::App*> next = app->get_subcommands(); !next.empty();
       next = app->get_subcommands())
    app = next.back();
  return *app;
}

std::string command_of(const CLI::App& verb) {
  return verb.get_parent() == nullptr ? verb.get_name()
                                      : command_of(*verb.get_parent()) + " " + verb.get_name();
}

std::vector<std::string> verb_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands({})) {
    names.push_back(verb->get_name());
    for (const std::string& alias : verb->get_aliases()) names.push_back(alias);
  }
  return names;
}

std::vector<std::string> flag_names(const CLI::App& verb) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

[[noreturn]] void unknown_verb(const CLI::App& parent, const std::string& word) {
  const std::vector<std::string> known = verb_names(parent);
  const std::string near = nearest(word, known);
  std::string text = cat(command_of(parent), " has no verb \"", escaped(word), "\"");
  text += near.empty() ? cat("; it has ", joined(known)) : cat("; did you mean ", near, "?");
  ConfigError error(text, "E-VERB");
  error.set_hint(cat(command_of(parent), " ", near.empty() ? "--help" : near + " --help"));
  throw error;
}

[[noreturn]] void unknown_argument(const CLI::App& verb, const std::string& argument) {
  const std::string command = command_of(verb);
  if (!argument.starts_with("-")) {
    ConfigError error(cat(command, " does not expect the argument \"", escaped(argument), "\""),
                      "E-USAGE");
    error.set_hint(command + " --help");
    throw error;
  }
  const std::string flag = argument.substr(0, argument.find('='));
  const std::string near = nearest(flag, flag_names(verb));
  ConfigError error(cat(command, " has no flag ", escaped(flag),
                        near.empty() ? std::string() : cat("; did you mean ", near, "?")),
                    "E-FLAG");
  error.set_hint(command + " --help");
  throw error;
}

[[noreturn]] void explain(const CLI::App& root, const CLI::ParseError& problem) {
  const CLI::App& verb = chosen(root);
  const std::vector<std::string> left = verb.remaining(true);
  const auto is_flag = [](const std::string& argument) { return argument.starts_with("-"); };
  if (const std::vector<std::string> inner = verb_names(verb); !inner.empty()) {
    for (const std::string& argument : left)
      if (!is_flag(argument)) unknown_verb(verb, argument);
    if (left.empty()) {
      ConfigError error(cat(command_of(verb), " needs a verb: ", joined(inner)), "E-VERB");
      error.set_hint(command_of(verb) + " --help");
      throw error;
    }
  }
  // An unknown flag first: what else is missing often follows from it.
  for (const bool flags : {true, false})
    for (const std::string& argument : left)
      if (argument != "--" && is_flag(argument) == flags) unknown_argument(verb, argument);
  ConfigError error(cat(command_of(verb), ": ", problem.what()), "E-USAGE");
  error.set_hint(command_of(verb) + " --help");
  throw error;
}

}  // namespace

std::optional<std::string> parse_command_line(const std::vector<std::string>& arguments,
                                              Session& session) {
  CLI::App root("Grafts small adapters onto frozen single-cell language models.", "scgraft");
  root.set_help_flag("-h,--help", "Print this help and leave");
  root.set_version_flag("--version", cat("scgraft ", kVersion));
  root.require_subcommand(1);
  root.footer("scgraft VERB --help explains a verb.");
  for (const VerbEntry& entry : verbs()) entry.add(root, session);

  try {
    root.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));  // last first
  } catch (const CLI::CallForHelp&) {
    return root.help();
  } catch (const CLI::CallForVersion& version) {
    return cat(version.what(), "\n");
  } catch (const CLI::ParseError& problem) {
    explain(root, problem);
  }
  return std::nullopt;
}

}  // namespace scgraft
