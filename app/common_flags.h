// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace scgraft {

// Flags that mean the same for every verb. A verb takes the groups that concern it; what was not
// given stays empty, so that a configuration file can say it.
struct CommonFlags {
  std::string output;                    // -o
  bool force = false;                    // --force: replace outputs that exist
  std::string config;                    // -c
  std::vector<std::string> sets;         // -s section.key=value
  std::string device = "auto";           // --device
  std::optional<std::string> precision;  // --precision auto|fp32|bf16|fp16
  std::optional<int64_t> batch_size;     // --batch-size
  std::optional<int64_t> seed;           // --seed
  std::string memory_limit;              // --memory-limit, e.g. 8GB
  int threads = 0;                       // -t; 0: what the environment allows
  std::optional<std::string> max_time;   // --max-time, e.g. 3h50m
  bool quiet = false;                    // -q
  int verbose = 0;                       // -v, -vv
  std::string progress = "auto";         // --progress auto|bar|plain|json|none
  std::string color = "auto";            // --color auto|always|never
  bool json = false;                     // --json
};

struct FlagGroups {
  bool output = false;  // -o, --force
  bool output_required = false;
  bool config = false;     // -c, -s
  bool compute = false;    // --device, --memory-limit, -t
  bool precision = false;  // --precision
  bool batch = false;      // --batch-size
  bool seed = false;       // --seed
  bool max_time = false;   // --max-time
};

// -q, -v, --progress, --color and --json, and the groups asked for.
void add_common_flags(CLI::App& verb, CommonFlags& flags, const FlagGroups& groups);

}  // namespace scgraft
