// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "adapters/adapter.h"
#include "adapters/encoder.h"
#include "adapters/hra.h"
#include "adapters/lora.h"
#include "adapters/oft.h"
#include "adapters/prefix.h"
#include "adapters/prefix_tuning.h"
#include "adapters/token.h"
#include "adapters/union.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

struct Kind {
  const char* name;
  std::unique_ptr<Adapter> (*make)(const AdapterOptions&, Backbone&, uint64_t seed);
};

// One line per kind. A plain table: objects that only register themselves are dropped by linkers.
constexpr Kind kKinds[] = {
    {"encoder", make_encoder_adapter},
    {"hra", make_hra},
    {"lora", make_lora},
    {"oft", make_oft},
    {"prefix", make_prefix},
    {"prefix_tuning", make_prefix_tuning},
    {"token", make_token_adapter},
};

// "token+lora": token, lora.
std::vector<std::string> parts_of(const std::string& type) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= type.size();) {
    const size_t end = std::min(type.find('+', begin), type.size());
    parts.push_back(type.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

const Kind* find_kind(const std::string& name) {
  for (const Kind& kind : kKinds)
    if (name == kind.name) return &kind;
  return nullptr;
}

}  // namespace

std::vector<std::string> adapter_kinds() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

bool is_adapter_type(const std::string& type, bool repeated) {
  const std::vector<std::string> parts = parts_of(type);
  const std::set<std::string> different(parts.begin(), parts.end());
  return (repeated || different.size() == parts.size()) &&
         std::all_of(parts.begin(), parts.end(),
                     [](const std::string& part) { return find_kind(part) != nullptr; });
}

std::unique_ptr<Adapter> make_adapter(const AdapterOptions& options, Backbone& backbone,
                                      uint64_t seed) {
  const bool apart = !options.parts.empty();
  if (!is_adapter_type(options.type, apart)) {
    std::string known;
    for (const Kind& kind : kKinds) known += cat(known.empty() ? "" : ", ", kind.name);
    throw ConfigError(cat("no adapter is called \"", options.type, "\"; this version has: ", known,
                          ", and several different ones joined by +"),
                      "E-ADAPTER-TYPE");
  }
  const std::vector<std::string> types = parts_of(options.type);
  require<ConfigError>(!apart || options.parts.size() == types.size(), "the adapter \"",
                       options.type, "\" has ", types.size(), " parts, and there are options for ",
                       options.parts.size());
  std::vector<std::unique_ptr<Adapter>> parts;
  for (size_t i = 0; i < types.size(); ++i) {
    AdapterOptions one = apart ? options.parts[i] : options;
    one.type = types[i];
    parts.push_back(find_kind(types[i])->make(one, backbone, seed));
  }
  if (parts.size() == 1) return std::move(parts.front());
  return std::make_unique<AdapterUnion>(options, std::move(parts));
}

}  // namespace scgraft
