// SPDX-License-Identifier: Apache-2.0
#include "app/inspect/inspect.h"

#include <memory>

#include "app/add_verb.h"
#include "app/verbs.h"

namespace scgraft {
namespace {

struct Options {
  std::string path;
  std::string model;
};

void inspect(Session& session, const Options& options) {
  switch (path_kind(options.path)) {
    case PathKind::h5ad:
      return inspect_h5ad(session, options.path, options.model);
    case PathKind::weights:
    case PathKind::weights_folder:
      return inspect_weights(session, options.path);
    case PathKind::adapter_folder:
      return inspect_adapter(session, options.path);
    case PathKind::run_folder:
      return inspect_run(session, options.path);
  }
}

}  // namespace

void add_inspect(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(root, session,
                            {"inspect",
                             "Say what is in a data file, checkpoint, adapter or run",
                             {"scgraft inspect cells.h5ad --model models/scgpt",
                              "scgraft inspect models/scgpt --json | jq .result.parameters"}},
                            [&session, options] { inspect(session, *options); });
  verb.add_option("FILE", options->path, "File or folder")->required();
  verb.add_option("--model", options->model, "Also match the genes of data with this model")
      ->type_name("DIR");
  add_common_flags(verb, session.flags(), {});
}

}  // namespace scgraft
