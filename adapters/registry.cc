// SPDX-License-Identifier: Apache-2.0
#include "adapters/adapter.h"
#include "adapters/lora.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

struct Kind {
  const char* name;
  std::unique_ptr<Adapter> (*make)(const AdapterOptions&, Backbone&, uint64_t seed);
};

// One line per kind. A plain table: objects that only register themselves are dropped by linkers.
constexpr Kind kKinds[] = {
    {"lora", make_lora},
};

}  // namespace

std::vector<std::string> adapter_kinds() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

std::unique_ptr<Adapter> make_adapter(const AdapterOptions& options, Backbone& backbone,
                                      uint64_t seed) {
  for (const Kind& kind : kKinds)
    if (options.type == kind.name) return kind.make(options, backbone, seed);
  std::string known;
  for (const Kind& kind : kKinds) known += cat(known.empty() ? "" : ", ", kind.name);
  throw ConfigError(cat("no adapter is called \"", options.type, "\"; this version has: ", known),
                    "E-ADAPTER-TYPE");
}

}  // namespace scgraft
