// SPDX-License-Identifier: Apache-2.0
#include "app/common_flags.h"

#include <CLI/CLI.hpp>

#include "app/byte_count.h"
#include "app/duration.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using Words = std::vector<std::string>;

std::string check_duration(const std::string& text) {
  try {
    parse_duration(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

std::string check_bytes(const std::string& text) {
  try {
    parse_bytes(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

}  // namespace

void add_common_flags(CLI::App& verb, CommonFlags& flags, const FlagGroups& groups) {
  if (groups.output || groups.output_required) {
    CLI::Option* output =
        verb.add_option("-o,--output", flags.output, "Output file or folder")->type_name("PATH");
    if (groups.output_required) output->required();
    verb.add_flag("--force", flags.force, "Replace outputs that exist");
  }
  if (groups.config) {
    verb.add_option("-c,--config", flags.config, "Configuration file (YAML)")->type_name("FILE");
    verb.add_option("-s,--set", flags.sets, "Set a key of the configuration; can be repeated")
        ->type_name("SECTION.KEY=VALUE")
        ->expected(1)
        ->take_all();
  }
  if (groups.compute) {
    verb.add_option("--device", flags.device, "auto, cpu, cuda or cuda:N")->type_name("DEVICE");
    verb.add_option(
            "--memory-limit", flags.memory_limit,
            "Memory that may be used, e.g. 8GB: of a GPU in all, on the CPU for activations")
        ->check(check_bytes)
        ->type_name("SIZE");
    verb.add_option("-t,--threads", flags.threads,
                    "Threads; default: SLURM_CPUS_PER_TASK, OMP_NUM_THREADS, the cgroup's quota")
        ->check(CLI::Range(1, 4095).description(""))
        ->type_name("N");
  }
  if (groups.precision)
    verb.add_option(
            "--precision", flags.precision,
            "Products with frozen weights, on a GPU activations too: auto, fp32, bf16, fp16")
        ->check(CLI::IsMember(Words{"auto", "fp32", "bf16", "fp16"}).description(""))
        ->type_name("TYPE");
  if (groups.batch)
    verb.add_option("--batch-size", flags.batch_size, "Cells of a micro batch")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20).description(""))
        ->type_name("N");
  if (groups.seed)
    verb.add_option("--seed", flags.seed, "Random numbers are a function of it (default 0)")
        ->check(CLI::NonNegativeNumber.description(""))
        ->type_name("N");
  if (groups.max_time)
    verb.add_option("--max-time", flags.max_time, "Stop by itself after this time, e.g. 3h50m")
        ->check(check_duration)
        ->type_name("TIME");
  verb.add_flag("-q,--quiet", flags.quiet, "Only warnings and errors on stderr");
  verb.add_flag("-v", flags.verbose, "More messages on stderr; twice for all");
  verb.add_option("--progress", flags.progress, "auto, bar, plain, json or none")
      ->check(CLI::IsMember(Words{"auto", "bar", "plain", "json", "none"}).description(""))
      ->type_name("KIND");
  verb.add_option("--color", flags.color, "auto, always or never")
      ->check(CLI::IsMember(Words{"auto", "always", "never"}).description(""))
      ->type_name("WHEN");
  verb.add_flag("--json", flags.json, "One JSON document on stdout instead of text");
}

}  // namespace scgraft
