// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "adapters/store.h"
#include "app/add_verb.h"
#include "app/inspect/inspect.h"
#include "app/table.h"
#include "app/verbs.h"
#include "app/verbs/adapter_verbs.h"
#include "io/checkpoint.h"
#include "io/output_folder.h"
#include "io/text.h"
#include "model/model_folder.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

void verify(Session& session, const std::string& folder) {
  Table table({"file", "state"});
  nlohmann::json files = nlohmann::json::array();
  std::string first;
  for (const FileCheck& check : verify_adapter(folder)) {
    table.add({check.file, check.ok() ? "OK" : "FAIL " + check.fault});
    files.push_back({{"file", check.file}, {"ok", check.ok()}, {"fault", check.fault}});
    if (!check.ok() && first.empty()) first = cat(escaped(check.file), ": ", check.fault);
  }
  session.result() = {{"files", files}, {"intact", first.empty()}};
  session.print(table.text());
  if (first.empty()) {
    load_adapter(folder);  // what the files say together
    return;
  }
  ModelError error(cat(escaped(folder), ": the adapter is damaged: ", first), "E-ADAPTER-DAMAGED");
  error.set_hint("copy the adapter again from where it came");
  error.set_where(folder, first);
  throw error;
}

}  // namespace

void add_merge_flags(CLI::App& verb, MergeOptions& options) {
  verb.add_option("--model", options.model, "Base model, when it is not where it was")
      ->type_name("DIR");
  verb.add_flag("--allow-base-mismatch", options.allow_base_mismatch,
                "Merge into another base than the adapter was made for");
}

void merge_adapter(Session& session, const MergeOptions& options) {
  const LoadedBundle loaded = load_adapter(options.adapter);
  const std::string& base = options.model.empty() ? loaded.bundle.base_path : options.model;
  if (base.empty()) {
    ConfigError error(cat(escaped(options.adapter), " does not say which model it was made for"),
                      "E-USAGE");
    error.set_hint("--model DIR");
    throw error;
  }
  const std::vector<std::string>& labels = loaded.bundle.labels;
  const std::unique_ptr<ModelFolder> model =
      open_model_folder(base, {.classes = std::ssize(labels)});
  const std::unique_ptr<Adapter> adapter =
      attach_adapter(loaded, model->backbone(), model->fingerprint(), options.allow_base_mismatch);
  if (adapter != nullptr && !adapter->merge_into(model->backbone())) {
    ModelError error(cat(escaped(options.adapter), ": an adapter of type ", adapter->kind(),
                         " cannot be merged into the weights"),
                     "E-ADAPTER");
    error.set_hint("use it attached: --adapter");
    throw error;
  }
  const std::string& output = session.flags().output;
  OutputFolder folder(output, session.overwrite());
  model->save(folder / "", labels);
  folder.commit();
  session.add_output(output);
  session.result() = {{"base", base},
                      {"adapter", options.adapter},
                      {"fingerprint", open_checkpoint(output).fingerprint()},
                      {"labels", labels}};
  session.print(fmt::format("{}: {} with {} merged in\n", output, base, options.adapter));
}

void add_adapter(CLI::App& root, Session& session) {
  CLI::App& parent = add_verb(
      root, session,
      {"adapter",
       "List, show, compare, import, export, verify and merge adapters",
       {"scgraft adapter show runs/pbmc/adapter", "scgraft adapter verify runs/pbmc/adapter"}});
  auto options = std::make_shared<MergeOptions>();

  CLI::App& show = add_verb(
      parent, session,
      {"show",
       "Say what an adapter is",
       {"scgraft adapter show runs/pbmc/adapter", "scgraft adapter show runs/pbmc/adapter --json"}},
      [&session, options] { inspect_adapter(session, options->adapter); });
  CLI::App& check = add_verb(parent, session,
                             {"verify",
                              "Compare an adapter's files with its manifest",
                              {"scgraft adapter verify runs/pbmc/adapter",
                               "scgraft adapter verify runs/pbmc/adapter --json"}},
                             [&session, options] { verify(session, options->adapter); });
  CLI::App& merged =
      add_verb(parent, session,
               {"merge",
                "Write the base model with the adapter inside its weights",
                {"scgraft adapter merge runs/pbmc/adapter -o models/pbmc",
                 "scgraft adapter merge runs/pbmc/adapter --model models/scgpt -o models/pbmc"}},
               [&session, options] { merge_adapter(session, *options); });
  for (CLI::App* verb : {&show, &check, &merged})
    verb->add_option("DIR", options->adapter, "Adapter directory")->required();
  add_merge_flags(merged, *options);
  add_common_flags(show, session.flags(), {});
  add_common_flags(check, session.flags(), {});
  add_common_flags(merged, session.flags(), {.output_required = true});
  add_adapter_list(parent, session);
  add_adapter_diff(parent, session);
  add_adapter_export(parent, session);
  add_adapter_import(parent, session);
}

}  // namespace scgraft
