// SPDX-License-Identifier: Apache-2.0
// What the program tells people to type exists.
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include "app/config/schema.h"
#include "app/session.h"
#include "app/verbs.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

void collect(const CLI::App& verb, std::set<std::string>& flags) {
  for (const CLI::Option* option : verb.get_options())
    for (const std::string& name : option->get_lnames()) flags.insert(name);
  for (const CLI::App* inner : verb.get_subcommands({})) collect(*inner, flags);
}

std::set<std::string> known_flags() {
  std::ostringstream ignored;
  Session session(ignored, ignored, {});
  CLI::App root("", "scgraft");
  for (const VerbEntry& entry : verbs()) entry.add(root, session);
  std::set<std::string> flags = {"help", "version"};
  collect(root, flags);
  return flags;
}

// Calls body(match, place) for every match of the pattern in a text of the sources.
template <class Body>
void for_each_match(const std::regex& pattern, Body&& body) {
  const std::regex literal("\"((?:[^\"\\\\\n]|\\\\.)*)\"");
  for (const char* layer : {"runtime", "kernels", "io", "model", "adapters", "training", "app"})
    for (const fs::directory_entry& entry :
         fs::recursive_directory_iterator(fs::path(SCGRAFT_SOURCE_DIR) / layer)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".cc" && extension != ".h") continue;
      const std::string code = read_text(entry.path().string());
      for (std::sregex_iterator text(code.begin(), code.end(), literal), end; text != end; ++text) {
        const std::string words = (*text)[1];
        for (std::sregex_iterator hit(words.begin(), words.end(), pattern); hit != end; ++hit)
          body((*hit)[1].str(), entry.path().string());
      }
    }
}

TEST(Hints, NameFlagsThatSomeVerbHas) {
  const std::set<std::string> flags = known_flags();
  ASSERT_GT(flags.size(), 20U);
  int seen = 0;
  for_each_match(std::regex("(?:^|[ (`])--([a-z][a-z-]+)"),
                 [&](const std::string& name, const auto& place) {
                   ++seen;
                   EXPECT_TRUE(flags.contains(name)) << "--" << name << " in " << place;
                 });
  EXPECT_GT(seen, 50);
}

TEST(Hints, NameKeysThatTheConfigurationHas) {
  int seen = 0;
  for_each_match(std::regex("-s ([a-z]+[.][a-z_]+)="),
                 [&](const std::string& name, const auto& place) {
                   ++seen;
                   EXPECT_NE(find_key(name), nullptr) << name << " in " << place;
                 });
  EXPECT_GT(seen, 2);
}

}  // namespace
}  // namespace scgraft
