// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "model/scgpt/load.h"
#include "model/scgpt/preparation.h"
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
// Logs W-LABEL-RARE for classes with fewer than ten cells. Throws DataError: E-NO-COLUMN,
// E-LABELS (fewer than two classes are left), E-SUBSET (no cell is left, or no such value).
CellSelection select_labelled_cells(const H5ad& file, const RunConfig::Data& data);

// The rows a "COLUMN=VALUE" filter keeps: 1 per row of the table. Throws ConfigError (E-SUBSET) for
// another form, DataError (E-NO-COLUMN, E-SUBSET naming the values there are).
std::vector<uint8_t> rows_of_subset(const H5ad& file, const std::string& subset);

// How the expression of a run is prepared, from its configuration and the model's.
Preparation preparation_of(const RunConfig& config, const ScgptConfig& model);

// The selected cells as tokens, and as features for the baselines over all genes of the file. Where
// genes were chosen by their variation, they become preparation.genes, for data that comes later.
struct CellData {
  TokenStore tokens;          // [cells]
  SparseFeatures expression;  // [cells, genes], log1p
  std::vector<std::string> genes;
};
CellData read_cells(Context& ctx, const H5ad& file, const ScgptModel& model,
                    Preparation& preparation, std::span<const int64_t> rows,
                    const RunEvents& events);

}  // namespace scgraft
