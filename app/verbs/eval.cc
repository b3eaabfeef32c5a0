// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "app/add_verb.h"
#include "app/table.h"
#include "app/verbs.h"
#include "io/h5ad.h"
#include "training/labelled_data.h"
#include "training/metrics_json.h"
#include "training/nearest_neighbours.h"

namespace scgraft {
namespace {

struct Options {
  std::string file, key, label_key, subset, obsm, reference, reference_subset;
  std::vector<std::string> exclude;
};

// The truth, and the classes of everything that is compared with it.
struct Truth {
  std::vector<std::string> labels;
  std::vector<int32_t> label;  // [cells], -1: not scored

  int32_t number(const std::string& name) {
    const auto at =
        static_cast<size_t>(std::find(labels.begin(), labels.end(), name) - labels.begin());
    if (at == labels.size()) labels.push_back(name);
    return static_cast<int32_t>(at);
  }
  std::vector<int32_t> numbers(const Categorical& column) {
    std::vector<int32_t> of, out;
    for (const std::string& name : column.categories) of.push_back(number(name));
    for (const int32_t code : column.codes)
      out.push_back(code < 0 ? -1 : of[static_cast<size_t>(code)]);
    return out;
  }
};

Truth read_truth(const H5ad& file, const Options& options) {
  Truth truth;
  const Categorical column = as_categorical(file.obs().read(options.label_key));
  const std::vector<uint8_t> keep = rows_of_subset(file, options.subset);
  truth.label.assign(column.codes.size(), -1);
  for (size_t i = 0; i < column.codes.size(); ++i) {
    if (keep[i] == 0 || column.codes[i] < 0) continue;
    const std::string& name = column.categories[static_cast<size_t>(column.codes[i])];
    if (std::find(options.exclude.begin(), options.exclude.end(), name) == options.exclude.end())
      truth.label[i] = truth.number(name);
  }
  return truth;
}

// Probabilities of the classes [cells, classes] from obsm, where annotate put them.
Tensor read_probabilities(const H5ad& file, const std::string& key, Truth& truth) {
  const auto group = file.root().find("obsm/" + key + "_probabilities");
  if (!group || !group->is_group()) return {};
  const Frame frame(*group, "obsm/" + key + "_probabilities");
  std::vector<int32_t> number;
  for (const std::string& name : truth.labels) {
    std::string column = name;
    std::replace(column.begin(), column.end(), '/', '|');
    number.push_back(frame.has(column) ? 1 : 0);
  }
  Tensor out({file.n_obs(), static_cast<int64_t>(truth.labels.size())}, DType::f32);
  const auto p = out.as<float, 2>();
  for (int64_t i = 0; i < out.numel(); ++i) out.as<float>()[i] = 0;
  for (size_t c = 0; c < truth.labels.size(); ++c) {
    if (number[c] == 0) continue;
    std::string name = truth.labels[c];
    std::replace(name.begin(), name.end(), '/', '|');
    const Column column = frame.read(name);
    const auto* values = std::get_if<Reals>(&column.values);
    if (values == nullptr) return {};
    for (int64_t i = 0; i < out.dim(0); ++i)
      p(i, static_cast<int64_t>(c)) = static_cast<float>((*values)[static_cast<size_t>(i)]);
  }
  return out;
}

// Labels of the nearest cells of a reference file in an embedding both files have.
std::vector<int32_t> transferred(Session& session, const H5ad& file, const Options& options,
                                 Truth& truth) {
  const H5ad reference = H5ad::open(options.reference);
  std::vector<int32_t> known =
      truth.numbers(as_categorical(reference.obs().read(options.label_key)));
  const std::vector<uint8_t> votes_allowed = rows_of_subset(reference, options.reference_subset);
  const H5ad::Embedding from = reference.obsm(options.obsm);
  const H5ad::Embedding to = file.obsm(options.obsm);
  if (from.dim != to.dim)
    throw DataError(cat("obsm/", options.obsm, " has ", to.dim, " columns, in ", reference.path(),
                        " it has ", from.dim),
                    "E-EMBEDDING");
  for (size_t i = 0; i < known.size(); ++i)
    if (votes_allowed[i] == 0) known[i] = -1;
  // Cells without numbers (no known gene) can neither vote nor be asked.
  auto finite_rows = [](const H5ad::Embedding& e, const std::vector<int32_t>& wanted) {
    std::vector<int64_t> rows;
    for (size_t i = 0; i < wanted.size(); ++i)
      if (wanted[i] >= 0 && std::isfinite(e.values[i * static_cast<size_t>(e.dim)]))
        rows.push_back(static_cast<int64_t>(i));
    return rows;
  };
  auto gathered = [](const H5ad::Embedding& e, const std::vector<int64_t>& rows) {
    Tensor out({static_cast<int64_t>(rows.size()), e.dim}, DType::f32);
    for (size_t k = 0; k < rows.size(); ++k)
      std::copy_n(e.values.begin() + rows[k] * e.dim, e.dim,
                  out.as<float>() + static_cast<int64_t>(k) * e.dim);
    return out;
  };
  const std::vector<int64_t> voters = finite_rows(from, known);
  const std::vector<int64_t> asked = finite_rows(to, truth.label);
  std::vector<int32_t> votes;
  for (const int64_t i : voters) votes.push_back(known[static_cast<size_t>(i)]);
  const Tensor rows = gathered(from, voters);
  HostContext host(session.context());  // nothing here runs on a device
  const NearestNeighbours nearest(host.get(), rows.view(), std::move(votes),
                                  static_cast<int32_t>(truth.labels.size()), 10);
  const ClassPrediction prediction = nearest.predict(host.get(), gathered(to, asked).view());
  std::vector<int32_t> out(truth.label.size(), -1);
  for (size_t k = 0; k < asked.size(); ++k)
    out[static_cast<size_t>(asked[k])] = prediction.label[k];
  return out;
}

struct Scored {
  std::string name, title;
  std::vector<int32_t> predicted;
  ClassificationMetrics metrics;
};

std::string overview(const std::vector<Scored>& all) {
  Table table({"", "cells", "accuracy", "balanced", "macro-F1", "ECE"});
  for (const Scored& s : all)
    table.add({s.title, fmt::format("{}", s.metrics.cells),
               fmt::format("{:.3f}", s.metrics.accuracy),
               fmt::format("{:.3f}", s.metrics.balanced_accuracy),
               fmt::format("{:.3f}", s.metrics.macro_f1_present),
               s.metrics.ece ? fmt::format("{:.3f}", *s.metrics.ece) : "-"});
  return table.text();
}

std::string per_class(const Scored& s, const std::vector<std::string>& labels) {
  Table table({"class", "cells", "precision", "recall", "F1"});
  for (size_t c = 0; c < labels.size(); ++c) {
    const ClassScore& score = s.metrics.classes[c];
    if (score.support == 0 && score.predicted == 0) continue;
    table.add({labels[c], fmt::format("{}", score.support), fmt::format("{:.3f}", score.precision),
               fmt::format("{:.3f}", score.recall), fmt::format("{:.3f}", score.f1)});
  }
  return table.text();
}

std::string confusion(const Scored& s, const std::vector<std::string>& labels) {
  std::vector<std::string> header = {"truth \\ predicted"};
  std::vector<size_t> shown;
  for (size_t c = 0; c < labels.size(); ++c)
    if (s.metrics.classes[c].support > 0 || s.metrics.classes[c].predicted > 0) shown.push_back(c);
  for (size_t k = 0; k < shown.size(); ++k) header.push_back(fmt::format("[{}]", k + 1));
  Table table(header);
  for (size_t k = 0; k < shown.size(); ++k) {
    std::vector<std::string> row = {fmt::format("[{}] {}", k + 1, labels[shown[k]])};
    for (const size_t c : shown)
      row.push_back(fmt::format("{}", s.metrics.confusion[shown[k] * labels.size() + c]));
    table.add(row);
  }
  return table.text();
}

void run(Session& session, const Options& options) {
  if (options.key.empty() && options.reference.empty())
    throw ConfigError("nothing to score: give --key COLUMN, or --obsm NAME with --reference FILE",
                      "E-MISSING");
  if (options.obsm.empty() != options.reference.empty())
    throw ConfigError("--obsm and --reference belong together", "E-MISSING");
  const H5ad file = H5ad::open(options.file);
  Truth truth = read_truth(file, options);
  std::vector<Scored> all;
  if (!options.key.empty()) {
    auto add = [&](const std::string& column, const std::string& name, const std::string& title) {
      all.push_back({name, title, truth.numbers(as_categorical(file.obs().read(column))), {}});
    };
    add(options.key, "model", options.key);
    if (file.obs().has(options.key + "_logreg"))
      add(options.key + "_logreg", "logistic_regression", "logistic regression");
    if (file.obs().has(options.key + "_knn"))
      add(options.key + "_knn", "knn", "nearest neighbours");
  }
  if (!options.reference.empty())
    all.push_back({"transfer",
                   "nearest neighbours in " + options.obsm,
                   transferred(session, file, options, truth),
                   {}});
  const auto classes = static_cast<int32_t>(truth.labels.size());
  for (Scored& s : all) {
    Tensor probabilities;
    if (s.name == "model") probabilities = read_probabilities(file, options.key, truth);
    s.metrics = classification_metrics(
        truth.label, s.predicted, classes,
        probabilities.empty() ? ConstTensorView() : std::as_const(probabilities).view());
  }
  nlohmann::json& result = session.result();
  result = metrics_json(all.front().metrics, truth.labels);
  result["scored"] = all.front().name;
  for (size_t i = 1; i < all.size(); ++i)
    result["beside"][all[i].name] = metrics_json(all[i].metrics, truth.labels);
  session.print(overview(all) + "\n" + per_class(all.front(), truth.labels) + "\n" +
                confusion(all.front(), truth.labels));
}

}  // namespace

void add_eval(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(
      root, session,
      {"eval",
       "Compare labels with the truth",
       {"scgraft eval out.h5ad --key pbmc --label-key cell_type",
        "scgraft eval out.h5ad --label-key cell_type --obsm X_scGPT --reference ref.h5ad --json"}},
      [&session, options] { run(session, *options); });
  verb.add_option("FILE", options->file, "Annotated cells (.h5ad)")->required();
  verb.add_option("--key", options->key, "Obs column with the labels to score");
  verb.add_option("--label-key", options->label_key, "Obs column with the truth")->required();
  verb.add_option("--subset", options->subset, "COLUMN=VALUE of obs: only these cells");
  verb.add_option("--exclude-label", options->exclude, "True labels whose cells are not scored");
  verb.add_option("--obsm", options->obsm,
                  "Score the labels of the ten nearest cells of --reference in this embedding");
  verb.add_option("--reference", options->reference,
                  "File with known labels (in --label-key) and the same embedding");
  verb.add_option("--reference-subset", options->reference_subset,
                  "COLUMN=VALUE of the reference's obs: only these cells vote");
  add_common_flags(verb, session.flags(), {.compute = true});
}

}  // namespace scgraft
