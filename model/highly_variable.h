// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/h5ad_rows.h"

namespace scgraft {

// How variable genes are told from noisy ones.
//   seurat_v3    variance of counts, clipped, over what a loess curve of log10 variance on log10
//                mean (span 0.3, degree 2) expects at that mean
//   cell_ranger  dispersion (variance / mean) of log1p-normalised values, as its distance from the
//                median of genes with a similar mean, in median absolute deviations
enum class HvgFlavour { seurat_v3, cell_ranger };
// "seurat_v3" or "cell_ranger"; throws ConfigError (E-HVG) otherwise.
HvgFlavour parse_hvg_flavour(const std::string& name);

struct HvgOptions {
  HvgFlavour flavour = HvgFlavour::seurat_v3;
  int64_t count = 2000;  // genes wanted; more than there are: all
  // Normalise and log the rows first: for cell_ranger on counts. 0: rows are used as they are.
  double target_sum = 0;
};

// Chooses the most variable columns of a matrix, reading it once (cell_ranger) or twice
// (seurat_v3), in memory of a chunk. The reader is rewound before and after.
//   candidates  [columns] 1 where a column may be chosen; others take no part at all, not in the
//               totals either
// Returns the chosen columns, ascending. Ties go to the earlier column with seurat_v3; with
// cell_ranger all columns that tie with the last one are chosen, as scanpy does.
//   file        name for messages
// Throws ConfigError (E-HVG) when no count is given, DataError as RowReader and
// require_expression() do, and E-HVG-CELLS for fewer than two cells.
// Source: scanpy.pp.highly_variable_genes; Stuart et al. 2019; Zheng et al. 2017.
std::vector<int32_t> highly_variable(RowReader& reader, std::span<const uint8_t> candidates,
                                     const HvgOptions& options, const std::string& file);

}  // namespace scgraft
