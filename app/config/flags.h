// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "app/common_flags.h"
#include "app/config/load.h"

namespace scgraft {

// Flags of a verb that stand for configuration keys. Keep the object alive while arguments are
// read and used:
//
//   auto flags = std::make_shared<ConfigFlags>();
//   flags->add(verb, {{"--label-key", "data.label_key"}, {"--epochs", "train.epochs"}});
//   ...
//   const RunConfig config = flags->load(session.flags(), &origins);
class ConfigFlags {
 public:
  // Pairs of a flag and its key; help and type name come from the key's row. BugError (Error) for
  // a key that does not exist.
  void add(CLI::App& verb, const std::vector<std::pair<std::string, std::string>>& flags);

  // What was given, with the common flags that stand for keys: -o, --precision, --batch-size,
  // --seed and --max-time.
  std::vector<FlagValue> given(const CommonFlags& common) const;

  // load_run_config() with -c, -s and the flags given.
  RunConfig load(const CommonFlags& common, Origins* origins = nullptr) const;

 private:
  struct Flag {
    std::string flag;
    std::string key;
    std::optional<std::string> value;
  };
  std::list<Flag> flags_;  // addresses stay
};

}  // namespace scgraft
