// SPDX-License-Identifier: Apache-2.0
#include "app/add_verb.h"

#include <memory>
#include <utility>

#include "runtime/cat.h"

namespace scgraft {
namespace {

// The usual help, after examples.
class HelpFormatter : public CLI::Formatter {
 public:
  explicit HelpFormatter(std::vector<std::string> examples) : examples_(std::move(examples)) {
    column_width(36);
  }

  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    std::string text;
    if (mode == CLI::AppFormatMode::Normal) {
      text = "Examples:\n";
      for (const std::string& example : examples_) text += cat("  ", example, "\n");
      text += "\n";
    }
    return text + CLI::Formatter::make_help(app, std::move(name), mode);
  }

 private:
  std::vector<std::string> examples_;
};

// "config-check" of `scgraft config check`.
std::string schema_name(const CLI::App& parent, const std::string& name) {
  return parent.get_parent() == nullptr ? name : cat(parent.get_name(), "-", name);
}

}  // namespace

CLI::App& add_verb(CLI::App& parent, Session& session, const VerbText& text,
                   std::function<void()> body) {
  CLI::App& verb = *parent.add_subcommand(text.name, text.summary);
  verb.footer("");
  verb.formatter(std::make_shared<HelpFormatter>(text.examples));
  if (body == nullptr) {
    verb.require_subcommand(1);
  } else {
    verb.callback(
        [&session, name = schema_name(parent, text.name), body] { session.choose(name, body); });
  }
  return verb;
}

}  // namespace scgraft
