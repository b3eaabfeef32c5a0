// SPDX-License-Identifier: Apache-2.0
// Our side of the comparison with PyTorch (benchmarks/peers): whole operations through the library,
// one per process so that peak memory belongs to it. Prints one JSON object.
//
//   whole_bench make      --folder F [--model scgpt|geneformer|scbert|scfoundation]
//                         [--preset P --vocab N --cells N --genes N | --spread 1]
//   whole_bench gradients --folder F --out FILE
//   whole_bench step      --folder F --steps N --warmup N --threads N --product f32|bf16
//                         [--device cpu|cuda] [--adapter TYPE|none|all]
//                         [--activations keep|recompute]
//   whole_bench embed     --folder F --repeats N --threads N --product f32|bf16 [--out FILE]
//   whole_bench tokens    --file FILE --vocab FILE --repeats N --threads N [--out FILE]
//   whole_bench load      --folder F --repeats N
#include <cstdio>
#include <exception>
#include <utility>

#include "benchmarks/whole/whole.h"
#include "runtime/cpu.h"
#include "runtime/error.h"

namespace scgraft::whole {

Arguments::Arguments(int argc, char** argv) {
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    require<ConfigError>(key.starts_with("--"), "expected --name value, got ", key);
    values_[key.substr(2)] = argv[i + 1];
  }
}

const std::string& Arguments::text(const std::string& key) const {
  const auto found = values_.find(key);
  require<ConfigError>(found != values_.end(), "--", key, " is missing");
  return found->second;
}

std::string Arguments::text(const std::string& key, const std::string& otherwise) const {
  const auto found = values_.find(key);
  return found == values_.end() ? otherwise : found->second;
}

int64_t Arguments::number(const std::string& key, int64_t otherwise) const {
  const auto found = values_.find(key);
  return found == values_.end() ? otherwise : std::stoll(found->second);
}

namespace {

using Command = nlohmann::json (*)(const Arguments&);
constexpr std::pair<const char*, Command> kCommands[] = {
    {"make", make_inputs},     {"gradients", write_gradients}, {"step", time_steps},
    {"embed", time_embedding}, {"tokens", time_tokens},        {"load", time_loading}};

nlohmann::json run(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  for (const auto& [name, command] : kCommands)
    if (wanted == name) return command(Arguments(argc, argv));
  throw ConfigError("no command is called \"" + wanted +
                    "\"; there are make, gradients, step, embed, tokens, load");
}

}  // namespace
}  // namespace scgraft::whole

int main(int argc, char** argv) {
  try {
    nlohmann::json result = scgraft::whole::run(argc, argv);
    if (!result.contains("peak_rss")) result["peak_rss"] = scgraft::peak_resident_bytes();
    result["cpu"] = scgraft::cpu_name();
    std::printf("%s\n", result.dump().c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "whole_bench: %s\n", error.what());
    return 1;
  }
}
