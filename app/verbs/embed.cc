// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <memory>

#include "app/add_verb.h"
#include "app/cell_model_flags.h"
#include "app/run_reporter.h"
#include "app/verbs.h"
#include "io/h5ad_writer.h"
#include "training/annotator.h"

namespace scgraft {
namespace {

struct Options {
  std::string file;
  CellModelFlags model;
  std::string key_added, target_depth, embedding = "auto";
  int64_t max_genes = 0;
};

void run(Session& session, const Options& options) {
  const H5ad file = H5ad::open(options.file);
  OpenedCellModel opened(session, options.model, parse_cell_embedding(options.embedding));
  CellModel& model = opened.model();
  Preparation preparation = opened.preparation();
  preparation.ask_for_depth(options.target_depth);
  if (options.max_genes > 0) model.limit_genes(preparation, options.max_genes);
  const std::string key = options.key_added.empty() ? cat("X_", model.title()) : options.key_added;

  RunReporter reporter(session, "");  // first: signals are caught before a hidden file exists
  H5adWriter writer(options.file, session.flags().output, session.overwrite(),
                    {.overwrite_slots = session.flags().force});
  const Embeddings embeddings =
      embed_file(session.context(), file, model, preparation, reporter.events());
  reporter.finish();
  const Tensor& values = embeddings.values;
  writer.add_obsm(key, values.dim(1), {values.as<float>(), static_cast<size_t>(values.numel())});
  writer.add_uns(key, {{"command_line", session.command_line()},
                       {"base_fingerprint", model.fingerprint()},
                       {"slot", embeddings.slot.slot},
                       {"genes", embeddings.genes.columns()},
                       {"genes_matched", embeddings.genes.matched},
                       {"cells_without_genes", embeddings.without_genes}});
  writer.commit();
  session.add_output(session.flags().output);
  session.result() = {{"key", key},
                      {"cells", values.dim(0)},
                      {"dim", values.dim(1)},
                      {"without_genes", embeddings.without_genes},
                      {"genes_matched", embeddings.genes.matched},
                      {"genes", embeddings.genes.columns()},
                      {"slot", embeddings.slot.slot}};
  session.print(
      fmt::format("{}: {} cells in obsm[\"{}\"], {} numbers each, {} of {} genes known, from {}\n",
                  session.flags().output, values.dim(0), key, values.dim(1),
                  embeddings.genes.matched, embeddings.genes.columns(), embeddings.slot.slot));
}

}  // namespace

void add_embed(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(root, session,
                            {"embed",
                             "Put a cell embedding into a file",
                             {"scgraft embed cells.h5ad --model scgpt-human -o out.h5ad",
                              "scgraft embed cells.h5ad --adapter runs/pbmc/adapter -o out.h5ad"}},
                            [&session, options] { run(session, *options); });
  verb.add_option("FILE", options->file, "Cells (.h5ad)")->required();
  add_cell_model_flags(verb, options->model);
  verb.add_option("--key-added", options->key_added,
                  "Name of the new obsm entry; default: X_ and the model's name");
  verb.add_option("--embedding", options->embedding,
                  "Of Geneformer: auto (mean over genes, layer before the last), last (the same of "
                  "the last layer) or cls (its first row); of scFoundation: auto (S, T, largest "
                  "and mean side by side) or max (the largest)")
      ->capture_default_str();
  verb.add_option(
      "--target-depth", options->target_depth,
      "Of scFoundation: sequencing depth that cells ask for: t4 (T = 4), f2 (twice the "
      "cell's own), a1 (T = S + 1), or bulk for profiles of many cells; default: t4, or "
      "as in training");
  verb.add_option(
      "--max-genes", options->max_genes,
      "Genes of a cell at most, others are left out at random; default: the model's or adapter's");
  add_common_flags(verb, session.flags(),
                   {.output = true, .output_required = true, .compute = true, .precision = true});
}

}  // namespace scgraft
