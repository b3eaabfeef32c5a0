// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "app/add_verb.h"
#include "app/cell_model_flags.h"
#include "app/run_reporter.h"
#include "app/table.h"
#include "app/verbs.h"
#include "io/output.h"
#include "io/text.h"
#include "training/attribution.h"

namespace scgraft {
namespace {

struct Options {
  std::string file;
  CellModelFlags model;
  std::string by;
  int64_t top = 20;
};

// A row per gene, groups one after another.
std::string table_of(const GeneAttribution& found, int64_t top) {
  const auto field = [](const std::string& text) { return escaped(text, text.size()); };
  std::string text = "group\tgene\tscore\tcells\n";
  for (size_t group = 0; group < found.groups.size(); ++group)
    for (const size_t gene : found.largest(group, top)) {
      const size_t at = group * found.genes.size() + gene;
      text += fmt::format("{}\t{}\t{}\t{}\n", field(found.groups[group]), field(found.genes[gene]),
                          static_cast<float>(found.score[at]), found.with_gene[at]);
    }
  return text;
}

// The first genes of each group.
std::string summary(const GeneAttribution& found, int64_t top) {
  Table table({"group", "cells", "genes with the largest scores"});
  for (size_t group = 0; group < found.groups.size(); ++group) {
    std::string genes;
    for (const size_t gene : found.largest(group, std::min<int64_t>(top, 5)))
      genes += (genes.empty() ? "" : " ") + found.genes[gene];
    table.add({found.groups[group], fmt::format("{}", found.cells[group]), genes});
  }
  return table.text();
}

void run(Session& session, const Options& options) {
  const std::string& output = session.flags().output;
  const bool on_stdout = output == "-";
  if (on_stdout && session.flags().json) {
    ConfigError error("-o - and --json both want standard output", "E-OUTPUT");
    error.set_hint("-o FILE");
    throw error;
  }
  const H5ad file = H5ad::open(options.file);
  OpenedCellModel opened(session, options.model);
  RunReporter reporter(session, "");  // first: signals are caught before a hidden file exists
  std::optional<OutputFile> table;
  if (!on_stdout) table.emplace(output, session.overwrite());
  const GeneAttribution found =
      attribute_genes(session.context(), file, opened.model(), opened.preparation(),
                      {.by = options.by}, reporter.events());
  reporter.finish();
  const std::string text = table_of(found, options.top);
  if (table) {
    table->write(text);
    table->commit();
    session.add_output(output);
  }

  nlohmann::json groups = nlohmann::json::object();
  int64_t cells = 0;
  for (size_t group = 0; group < found.groups.size(); ++group) {
    groups[found.groups[group]] = found.cells[group];
    cells += found.cells[group];
  }
  session.result() = {{"cells", cells},
                      {"groups", groups},
                      {"without_genes", found.without_genes},
                      {"without_label", found.without_label},
                      {"genes_matched", found.match.matched},
                      {"genes", found.match.columns()},
                      {"slot", found.slot.slot}};
  if (on_stdout) return session.print(text);
  session.print(fmt::format("{}: {} cells in {} groups, {} of {} genes known, from {}\n", output,
                            cells, found.groups.size(), found.match.matched, found.match.columns(),
                            found.slot.slot));
  if (found.without_genes > 0)
    session.print(fmt::format("{} cells express no known gene\n", found.without_genes));
  if (found.without_label > 0)
    session.print(fmt::format("{} cells have no label\n", found.without_label));
  session.print("\n" + summary(found, options.top));
}

}  // namespace

void add_attribute(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb =
      add_verb(root, session,
               {"attribute",
                "List the genes that a model attends to most",
                {"scgraft attribute cells.h5ad --model models/scbert --by cell_type -o genes.tsv",
                 "scgraft attribute cells.h5ad --adapter runs/pbmc/adapter --top 50 -o genes.tsv"}},
               [&session, options] { run(session, *options); });
  verb.add_option("FILE", options->file, "Cells (.h5ad)")->required();
  add_cell_model_flags(verb, options->model);
  verb.add_option("--by", options->by,
                  "Obs column: a list for each of its labels; default: one for all cells");
  verb.add_option("--top", options->top, "Genes of a list at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20).description(""))
      ->capture_default_str();
  add_common_flags(verb, session.flags(),
                   {.output = true, .output_required = true, .compute = true, .precision = true});
}

}  // namespace scgraft
