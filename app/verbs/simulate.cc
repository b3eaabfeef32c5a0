// SPDX-License-Identifier: Apache-2.0
#include "io/simulate.h"

#include <fmt/core.h>

#include <filesystem>
#include <memory>

#include "app/add_verb.h"
#include "app/verbs.h"

namespace scgraft {
namespace {

void simulate(Session& session, SimulateOptions& options) {
  options.seed = static_cast<uint64_t>(session.flags().seed.value_or(0));
  if (options.shifted_cells == 0) options.shifted_cells = std::max<int64_t>(1, options.cells / 2);
  const std::string& folder = session.flags().output;
  HostContext host(session.context());  // nothing here runs on a device
  simulate_files(host.get(), folder, options, session.overwrite());
  for (const char* name : {"atlas.h5ad", "shifted.h5ad"}) {
    const std::string path = (std::filesystem::path(folder) / name).string();
    const bool atlas = std::string(name) == "atlas.h5ad";
    const int64_t cells = atlas ? options.cells : options.shifted_cells;
    session.add_output(path);
    session.result()[name] = {{"n_obs", cells}, {"n_vars", options.genes}};
    session.print(
        fmt::format("{}: {} cells, {} genes, {} types, condition {}\n", path, cells, options.genes,
                    options.types,
                    Simulator::condition(atlas ? SimulatedFile::atlas : SimulatedFile::shifted)));
  }
}

}  // namespace

void add_simulate(CLI::App& root, Session& session) {
  auto options = std::make_shared<SimulateOptions>();
  options->shifted_cells = 0;
  CLI::App& verb = add_verb(root, session,
                            {"simulate",
                             "Make counts with cell types, donors and a shifted context",
                             {"scgraft simulate -o study",
                              "scgraft simulate -o big --cells 1000000 --types 16 --seed 1"}},
                            [&session, options] { simulate(session, *options); });
  verb.add_option("--cells", options->cells, "Cells of atlas.h5ad")->capture_default_str();
  verb.add_option("--shifted-cells", options->shifted_cells,
                  "Cells of shifted.h5ad; default: half as many");
  verb.add_option("--types", options->types, "Cell types, 2 to 16")->capture_default_str();
  verb.add_option("--genes", options->genes, "Genes, 300 to 1200")->capture_default_str();
  verb.add_option("--donors", options->donors, "Donors of each file")->capture_default_str();
  verb.add_option("--signal", options->signal, "How clearly related types differ")
      ->capture_default_str();
  verb.add_option("--depth", options->depth, "median counts of a cell")->capture_default_str();
  verb.add_option("--shift", options->shift, "How far the shifted context is from the atlas")
      ->capture_default_str();
  add_common_flags(verb, session.flags(),
                   {.output = true, .output_required = true, .compute = true, .seed = true});
}

}  // namespace scgraft
