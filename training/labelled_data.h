// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "model/cell_model.h"
#include "model/token_store.h"
#include "training/run_config.h"
#include "training/run_events.h"
#include "training/sparse_features.h"

namespace scgraft {

// Which cells of a file a run uses, and their classes.
struct CellSelection {
  std::vector<std::string> labels;  // classes that occur, in the order of the column's categories
  std::vector<int64_t> rows;        // [cells] rows of the file, ascending
  std::vector<int32_t> label;       // [cells]
  std::vector<int32_t> group;       // [cells] of split_by, -1 where missing; empty without it
};

// The cells that have a label, lie in data.subset and do not carry an excluded label.
// With `classes`, these are the labels, and cells with another one are left out.
// Logs W-LABEL-RARE for classes with fewer than ten cells. Throws DataError: E-NO-COLUMN,
// E-LABELS (fewer than two classes are left), E-SUBSET (no cell is left, or no such value).
CellSelection select_labelled_cells(const H5ad& file, const RunConfig::Data& data,
                                    const std::vector<std::string>& classes = {});

// The rows a "COLUMN=VALUE" filter keeps: 1 per row of the table. Throws ConfigError (E-SUBSET) for
// another form, DataError (E-NO-COLUMN, E-SUBSET naming the values there are).
std::vector<uint8_t> rows_of_subset(const H5ad& file, const std::string& subset);

// What a run's configuration says about the preparation of cells goes into the model's own. Throws
// ConfigError (E-PREPARE) for what the model cannot be told.
Preparation preparation_of(const RunConfig& config, const CellModel& model);
// The same of what every model can be told.
void prepare_as(const RunConfig& config, Preparation& preparation);

// Names of the genes of a slot: the index of its var table, or a column of it.
std::vector<std::string> gene_names(const H5ad& file, const std::string& slot,
                                    const std::string& gene_key);

// For each of `genes`, its number in `known`; -1 when it is not there or came before.
std::vector<int32_t> gene_columns(const std::vector<std::string>& genes,
                                  const std::vector<std::string>& known);

// Cells as tokens, and as features for the baselines over all genes of the first file.
struct CellData {
  TokenStore tokens;          // [cells]
  SparseFeatures expression;  // [cells, genes], log1p
  std::vector<std::string> genes;
};
// Adds the cells in these rows of the file that `reader` has been opened on.
void read_cells(CellReader& reader, const H5ad& file, std::span<const int64_t> rows,
                const RunEvents& events, CellData& out);

}  // namespace scgraft
