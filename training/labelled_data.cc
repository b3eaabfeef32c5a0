// SPDX-License-Identifier: Apache-2.0
#include "training/labelled_data.h"

#include <algorithm>
#include <unordered_map>

#include "io/text.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 12; ++i)
    text += (i > 0 ? ", " : "") + escaped(names[i]);
  if (names.size() > 12) text += cat(" and ", names.size() - 12, " more");
  return text;
}

}  // namespace

std::vector<uint8_t> rows_of_subset(const H5ad& file, const std::string& subset) {
  std::vector<uint8_t> keep(static_cast<size_t>(file.n_obs()), 1);
  if (subset.empty()) return keep;
  const size_t equals = subset.find('=');
  if (equals == std::string::npos || equals == 0)
    throw ConfigError(cat("a subset is COLUMN=VALUE, got \"", escaped(subset), "\""), "E-SUBSET");
  const std::string value = subset.substr(equals + 1);
  const Categorical column = as_categorical(file.obs().read(subset.substr(0, equals)));
  const auto at = std::find(column.categories.begin(), column.categories.end(), value);
  if (at == column.categories.end()) {
    DataError error(
        cat("no cell has ", escaped(subset), "; the values are ", listed(column.categories)),
        "E-SUBSET");
    error.set_where(file.path(), "obs/" + subset.substr(0, equals));
    throw error;
  }
  const auto code = static_cast<int32_t>(at - column.categories.begin());
  for (size_t i = 0; i < keep.size(); ++i) keep[i] = column.codes[i] == code ? 1 : 0;
  return keep;
}

CellSelection select_labelled_cells(const H5ad& file, const RunConfig::Data& data,
                                    const std::vector<std::string>& classes) {
  const Categorical column = as_categorical(file.obs().read(data.label_key));
  const std::vector<uint8_t> in_subset = rows_of_subset(file, data.subset);
  std::vector<int64_t> count(column.categories.size(), 0);
  auto excluded = [&](int32_t code) {
    const auto& names = data.exclude_labels;
    return std::find(names.begin(), names.end(), column.categories[static_cast<size_t>(code)]) !=
           names.end();
  };
  CellSelection out;
  std::vector<int32_t> code;
  for (size_t i = 0; i < column.codes.size(); ++i) {
    if (in_subset[i] == 0 || column.codes[i] < 0 || excluded(column.codes[i])) continue;
    out.rows.push_back(static_cast<int64_t>(i));
    code.push_back(column.codes[i]);
    ++count[static_cast<size_t>(column.codes[i])];
  }
  std::vector<int32_t> label_of(count.size(), -1);
  out.labels = classes;
  std::string rare;
  for (size_t c = 0; c < count.size(); ++c) {
    if (count[c] == 0) continue;
    if (classes.empty()) {
      label_of[c] = static_cast<int32_t>(out.labels.size());
      out.labels.push_back(column.categories[c]);
    } else {
      const auto at = std::find(classes.begin(), classes.end(), column.categories[c]);
      if (at != classes.end()) label_of[c] = static_cast<int32_t>(at - classes.begin());
    }
    if (count[c] < 10)
      rare += cat(rare.empty() ? "" : ", ", escaped(column.categories[c]), " (", count[c], ")");
  }
  std::vector<int64_t> rows;
  for (size_t i = 0; i < code.size(); ++i) {
    if (label_of[static_cast<size_t>(code[i])] < 0) continue;
    rows.push_back(out.rows[i]);
    out.label.push_back(label_of[static_cast<size_t>(code[i])]);
  }
  out.rows = std::move(rows);
  if (out.labels.size() < 2 || out.rows.empty()) {
    DataError error(
        cat("obs/", escaped(data.label_key), " of ", file.path(), " gives ", out.labels.size(),
            " classes over ", out.rows.size(), " cells; annotation needs two classes or more"),
        "E-LABELS");
    error.set_where(file.path(), "obs/" + data.label_key);
    error.set_hint("name another column with --label-key; the file has " +
                   listed(file.obs().columns()));
    throw error;
  }
  if (!rare.empty() && classes.empty())
    log_warning("W-LABEL-RARE", "few cells to learn from: ", rare,
                ". Leave classes out with -s data.exclude_labels=[...]");
  if (!data.split_by.empty()) {
    const Categorical groups = as_categorical(file.obs().read(data.split_by));
    for (const int64_t row : out.rows) out.group.push_back(groups.codes[static_cast<size_t>(row)]);
  }
  return out;
}

void prepare_as(const RunConfig& config, Preparation& p) {
  p.layer = config.data.layer;
  p.gene_key = config.data.gene_key;
  p.hvg = config.data.hvg;
  p.hvg_count = config.data.hvg_count;
  p.seed = static_cast<uint64_t>(config.train.seed);
  p.ask_for_depth(config.data.target_depth);
}

Preparation preparation_of(const RunConfig& config, const CellModel& model) {
  Preparation p = model.preparation();
  prepare_as(config, p);
  if (config.data.max_genes > 0) model.limit_genes(p, config.data.max_genes);
  return p;
}

std::vector<std::string> gene_names(const H5ad& file, const std::string& slot,
                                    const std::string& gene_key) {
  const Frame& var = file.var_of(file.slot(slot));
  if (gene_key.empty()) return var.index();
  const Column column = var.read(gene_key);
  std::vector<std::string> names;
  for (int64_t i = 0; i < column.size(); ++i) names.push_back(column.text(i));
  return names;
}

std::vector<int32_t> gene_columns(const std::vector<std::string>& genes,
                                  const std::vector<std::string>& known) {
  std::unordered_map<std::string_view, int32_t> at;
  for (size_t i = 0; i < known.size(); ++i) at.emplace(known[i], static_cast<int32_t>(i));
  std::vector<int32_t> out(genes.size(), -1);
  for (size_t i = 0; i < genes.size(); ++i) {
    const auto found = at.find(genes[i]);
    if (found == at.end()) continue;
    out[i] = found->second;
    at.erase(found);
  }
  return out;
}

void read_cells(CellReader& reader, const H5ad& file, std::span<const int64_t> rows,
                const RunEvents& events, CellData& out) {
  std::vector<std::string> genes =
      gene_names(file, reader.slot().slot, reader.preparation().gene_key);
  std::vector<int32_t> column_of;
  if (out.genes.empty())
    out.genes = std::move(genes);
  else
    column_of = gene_columns(genes, out.genes);
  TokenisedCells cells;
  SparseRows normalised;
  auto wanted = rows.begin();
  while (reader.next(cells, &normalised)) {
    const int64_t end = normalised.first_row + normalised.rows();
    const auto stop = std::lower_bound(wanted, rows.end(), end);
    const std::span<const int64_t> part(wanted, stop);
    wanted = stop;
    out.tokens.append(cells, part);
    out.expression.append(normalised, part, FeatureInput::log1p, column_of);
    events.tell("read", end, reader.cells());
  }
}

}  // namespace scgraft
