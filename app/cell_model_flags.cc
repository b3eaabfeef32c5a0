// SPDX-License-Identifier: Apache-2.0
#include "app/cell_model_flags.h"

#include <CLI/CLI.hpp>

#include "app/session.h"
#include "runtime/error.h"

namespace scgraft {

void add_cell_model_flags(CLI::App& verb, CellModelFlags& flags) {
  verb.add_option("--model", flags.model,
                  "Folder of the frozen model; with --adapter: where it is now");
  verb.add_option("--adapter", flags.adapter, "Adapter directory: use the model that it changes");
  verb.add_option("--dictionaries", flags.dictionaries,
                  "Folder of Geneformer's dictionaries, scBERT's genes.txt or scFoundation's table "
                  "of genes; default: the model's, or as in training");
  verb.add_option("--gene-key", flags.gene_key,
                  "Var column with the gene names; default: the index, or as in training");
  verb.add_option("--layer", flags.layer, "Matrix to use: auto, X, raw or a layer's name")
      ->capture_default_str();
  verb.add_flag("--allow-base-mismatch", flags.allow_base_mismatch,
                "Use the adapter on other weights than it was made for");
}

OpenedCellModel::OpenedCellModel(Session& session, const CellModelFlags& flags,
                                 CellEmbedding embedding) {
  if (flags.model.empty() && flags.adapter.empty())
    throw ConfigError(
        cat("nothing to ", session.verb(), " with: give --model DIR, or --adapter DIR"),
        "E-MISSING");
  if (!flags.adapter.empty()) {
    annotator_.emplace(flags.adapter,
                       AnnotatorOptions{.model = flags.model,
                                        .dictionaries = flags.dictionaries,
                                        .embedding = embedding,
                                        .allow_base_mismatch = flags.allow_base_mismatch,
                                        .product = session.product_type()});
    preparation_ = annotator_->preparation();
    annotator_->move_to(session.context().device());
  } else {
    frozen_ =
        open_cell_model(flags.model, {.embedding = embedding, .dictionaries = flags.dictionaries});
    frozen_->backbone().set_precision(session.product_type());
    preparation_ = frozen_->preparation();
  }
  preparation_.layer = flags.layer;
  if (!flags.gene_key.empty()) preparation_.gene_key = flags.gene_key;
}

}  // namespace scgraft
