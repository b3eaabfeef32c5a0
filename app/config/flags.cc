// SPDX-License-Identifier: Apache-2.0
#include "app/config/flags.h"

#include <CLI/CLI.hpp>

#include "app/config/schema.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

std::string type_name(const ConfigKey& key) {
  switch (key.type) {
    case ConfigType::path:
      return "PATH";
    case ConfigType::integer:
      return "N";
    case ConfigType::real:
      return "X";
    case ConfigType::duration:
      return "TIME";
    case ConfigType::words:
    case ConfigType::texts:
      return "A,B,...";
    case ConfigType::text:
    case ConfigType::choice:
    case ConfigType::joined:
      break;
  }
  return "TEXT";
}

std::string help_of(const ConfigKey& key) {
  std::string text(key.help);
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  if (!key.choices.empty()) text += ": " + key.expected();
  return text;
}

}  // namespace

void ConfigFlags::add(CLI::App& verb,
                      const std::vector<std::pair<std::string, std::string>>& flags) {
  for (const auto& [flag, name] : flags) {
    const ConfigKey* key = find_key(name);
    require<Error>(key != nullptr, "the flag ", flag, " stands for an unknown key ", name);
    Flag& entry = flags_.emplace_back(Flag{flag, key->full_name(), std::nullopt});
    verb.add_option(flag, entry.value, help_of(*key))->type_name(type_name(*key));
  }
}

std::vector<FlagValue> ConfigFlags::given(const CommonFlags& common) const {
  std::vector<FlagValue> given;
  const auto give = [&](const char* key, const std::string& value, const char* flag) {
    given.push_back({key, value, flag});
  };
  if (!common.output.empty()) give("output_dir", common.output, "--output");
  if (common.precision) give("train.precision", *common.precision, "--precision");
  if (common.batch_size)
    give("train.micro_batch_size", std::to_string(*common.batch_size), "--batch-size");
  if (common.seed) give("train.seed", std::to_string(*common.seed), "--seed");
  if (common.max_time) give("train.max_seconds", *common.max_time, "--max-time");
  for (const Flag& flag : flags_)
    if (flag.value) given.push_back({flag.key, *flag.value, flag.flag});
  return given;
}

RunConfig ConfigFlags::load(const CommonFlags& common, Origins* origins) const {
  std::optional<std::filesystem::path> file;
  if (!common.config.empty()) file = common.config;
  return load_run_config(file, common.sets, given(common), origins);
}

}  // namespace scgraft
