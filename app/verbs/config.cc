// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "app/add_verb.h"
#include "app/config/flags.h"
#include "app/config/schema.h"
#include "app/verbs.h"
#include "io/output.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

struct Options {
  std::string file;
  ConfigFlags flags;
};

void put(Session& session, const std::string& text) {
  const std::string& path = session.flags().output;
  if (path.empty() || path == "-") {
    session.print(text);
    return;
  }
  write_file(path, text, session.overwrite());
  session.add_output(path);
}

void init(Session& session) {
  const std::string text = example_yaml();
  session.result()["yaml"] = text;
  put(session, text);
}

RunConfig load(Session& session, const Options& options, Origins& origins) {
  CommonFlags common = session.flags();
  common.output.clear();  // of this verb, not of the run
  if (!options.file.empty()) {
    require<ConfigError>(common.config.empty(), "the configuration is named twice: ", options.file,
                         " and --config ", common.config);
    common.config = options.file;
  }
  return options.flags.load(common, &origins);
}

void check(Session& session, const Options& options) {
  Origins origins;
  load(session, options, origins);
  session.result() = {{"file", options.file}, {"valid", true}};
  session.print(options.file + ": OK\n");
}

void show(Session& session, const Options& options) {
  Origins origins;
  const RunConfig config = load(session, options, origins);
  for (const ConfigKey& key : config_keys())
    session.result()["config"][key.full_name()] = value_of(key, config);
  session.result()["origins"] = origins;
  put(session, resolved_yaml(config, origins));
}

void schema(Session& session) {
  const nlohmann::ordered_json schema = config_json_schema();
  session.result()["schema"] = schema;
  put(session, schema.dump(2) + "\n");
}

}  // namespace

void add_config(CLI::App& root, Session& session) {
  CLI::App& parent =
      add_verb(root, session,
               {"config",
                "Write, check and show run configurations",
                {"scgraft config init -o run.yaml", "scgraft config check run.yaml"}});

  CLI::App& init_verb =
      add_verb(parent, session,
               {"init",
                "Write an example with every key and its default",
                {"scgraft config init -o run.yaml", "scgraft config init | less"}},
               [&session] { init(session); });
  add_common_flags(init_verb, session.flags(), {.output = true});

  auto checked = std::make_shared<Options>();
  CLI::App& check_verb =
      add_verb(parent, session,
               {"check",
                "Say everything that is wrong with a configuration",
                {"scgraft config check run.yaml", "scgraft config check run.yaml -s adapter.r=16"}},
               [&session, checked] { check(session, *checked); });
  check_verb.add_option("FILE", checked->file, "Configuration (YAML)")->required();
  add_common_flags(check_verb, session.flags(), {.config = true});

  auto shown = std::make_shared<Options>();
  CLI::App& show_verb =
      add_verb(parent, session,
               {"show",
                "Print the resolved configuration with the origin of each value",
                {"scgraft config show run.yaml", "scgraft config show -s train.epochs=3 --json"}},
               [&session, shown] { show(session, *shown); });
  show_verb.add_option("FILE", shown->file, "Configuration (YAML)");
  add_common_flags(show_verb, session.flags(), {.output = true, .config = true});

  CLI::App& schema_verb = add_verb(parent, session,
                                   {"schema",
                                    "Print the JSON Schema of configurations",
                                    {"scgraft config schema > run.schema.json",
                                     "scgraft config schema | jq '.properties|keys'"}},
                                   [&session] { schema(session); });
  add_common_flags(schema_verb, session.flags(), {.output = true});
}

}  // namespace scgraft
