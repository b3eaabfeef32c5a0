// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <filesystem>
#include <memory>

#include "app/add_verb.h"
#include "app/annotation_output.h"
#include "app/run_reporter.h"
#include "app/table.h"
#include "app/verbs.h"
#include "training/annotator.h"

namespace scgraft {
namespace {

struct Options {
  std::string file, adapter, key_added, csv, gene_key, layer;
  AnnotatorOptions annotator;
};

std::string summary(const Annotation& a, const std::vector<std::string>& labels) {
  std::vector<int64_t> count(labels.size()), logistic(labels.size()), neighbours(labels.size());
  std::vector<double> confidence(labels.size());
  auto tally = [](const std::vector<int32_t>& from, std::vector<int64_t>& into) {
    for (const int32_t label : from)
      if (label >= 0) ++into[static_cast<size_t>(label)];
  };
  tally(a.label, count);
  tally(a.logistic, logistic);
  tally(a.neighbours, neighbours);
  for (size_t i = 0; i < a.label.size(); ++i)
    if (a.label[i] >= 0)
      confidence[static_cast<size_t>(a.label[i])] += static_cast<double>(a.confidence[i]);
  Table table({"label", "cells", "mean confidence", "logistic regression", "nearest neighbours"});
  for (size_t c = 0; c < labels.size(); ++c)
    table.add(
        {labels[c], fmt::format("{}", count[c]),
         count[c] > 0 ? fmt::format("{:.3f}", confidence[c] / static_cast<double>(count[c])) : "-",
         a.logistic.empty() ? "-" : fmt::format("{}", logistic[c]),
         a.neighbours.empty() ? "-" : fmt::format("{}", neighbours[c])});
  return table.text();
}

double agreement(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  int64_t same = 0;
  for (size_t i = 0; i < a.size(); ++i) same += a[i] == b[i] ? 1 : 0;
  return a.empty() ? 0 : static_cast<double>(same) / static_cast<double>(a.size());
}

void run(Session& session, Options& options) {
  if (options.csv == "-" && session.flags().json) {
    ConfigError error("--csv - and --json both want standard output", "E-OUTPUT");
    error.set_hint("--csv FILE");
    throw error;
  }
  options.annotator.product = session.product_type();
  const std::string key =
      options.key_added.empty() ? default_annotation_key(options.adapter) : options.key_added;
  const H5ad file = H5ad::open(options.file);
  Annotator annotator(options.adapter, options.annotator);
  RunReporter reporter(session, "");  // first: signals are caught before a hidden file exists
  AnnotationOutput output(options.file, session.flags().output, session.overwrite(), key);
  const Annotation annotation = annotator.annotate(session.context(), file, options.gene_key,
                                                   options.layer, reporter.events());
  reporter.finish();
  output.write(annotation, annotator, file, session);
  session.add_output(session.flags().output);
  const bool table_on_stdout = options.csv == "-";
  if (table_on_stdout) {
    write_annotation_csv(file, annotation, annotator.labels(),
                         [&](std::string_view text) { session.print(text); });
  } else if (!options.csv.empty()) {
    OutputFile table(options.csv, session.overwrite());
    write_annotation_csv(file, annotation, annotator.labels(),
                         [&](std::string_view text) { table.write(text); });
    table.commit();
    session.add_output(options.csv);
  }

  nlohmann::json& result = session.result();
  result = {{"key", key},
            {"cells", annotation.label.size()},
            {"without_genes", annotation.without_genes},
            {"genes_matched", annotation.genes.matched},
            {"genes", annotation.genes.columns()},
            {"slot", annotation.slot.slot}};
  std::string baselines;
  if (!annotation.logistic.empty()) {
    const double logistic = agreement(annotation.label, annotation.logistic);
    const double neighbours = agreement(annotation.label, annotation.neighbours);
    result["agreement"] = {{"logistic_regression", logistic}, {"knn", neighbours}};
    baselines = fmt::format(
        "agrees with logistic regression on {:.1f} % of the cells, with nearest neighbours on "
        "{:.1f} %\n",
        100 * logistic, 100 * neighbours);
  }
  if (table_on_stdout) return;
  session.print(fmt::format("{}: {} cells in obs[\"{}\"], {} of {} genes known, from {}\n",
                            session.flags().output, annotation.label.size(), key,
                            annotation.genes.matched, annotation.genes.columns(),
                            annotation.slot.slot));
  if (annotation.without_genes > 0)
    session.print(
        fmt::format("{} cells express no known gene: status no_genes\n", annotation.without_genes));
  session.print("\n" + summary(annotation, annotator.labels()) + baselines);
}

}  // namespace

void add_annotate(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(
      root, session,
      {"annotate",
       "Label the cells of a file with a trained adapter",
       {"scgraft annotate query.h5ad --adapter runs/pbmc/adapter -o out.h5ad",
        "scgraft annotate query.h5ad --adapter runs/pbmc/adapter -o out.h5ad --csv out.csv"}},
      [&session, options] { run(session, *options); });
  verb.add_option("FILE", options->file, "Cells (.h5ad)")->required();
  verb.add_option("--adapter", options->adapter, "Adapter directory")->required();
  verb.add_option("--model", options->annotator.model,
                  "Folder of the frozen model; default: where it was when the adapter was trained");
  verb.add_option("--key-added", options->key_added,
                  "Name of the new columns; default: the name of the run folder");
  verb.add_option("--csv", options->csv,
                  "Also write the labels as a table (CSV); -: to standard output, and no summary");
  verb.add_option("--gene-key", options->gene_key,
                  "Var column with the gene names; default: as in training");
  verb.add_option("--layer", options->layer,
                  "Matrix to use: auto, X, raw or a layer's name; default: auto");
  verb.add_option("--dictionaries", options->annotator.dictionaries,
                  "Folder of Geneformer's dictionaries, scBERT's genes.txt or scFoundation's table "
                  "of genes; default: as in "
                  "training");
  verb.add_flag("--allow-base-mismatch", options->annotator.allow_base_mismatch,
                "Use the adapter on other weights than it was made for");
  add_common_flags(verb, session.flags(),
                   {.output = true, .output_required = true, .compute = true, .precision = true});
}

}  // namespace scgraft
