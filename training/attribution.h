// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "model/cell_model.h"
#include "training/run_events.h"

namespace scgraft {

// What the attention of a model says about genes, for groups of cells.
//
//   score[g, i] = mean over the cells of group g of what the token of gene i receives
//
// where a cell's tokens receive as much in all as there are of them (GeneAttention): 1 is what a
// gene would have that the attention does not tell from others.
struct GeneAttribution {
  std::vector<std::string> groups;  // those with cells, in the order of the column's categories
  std::vector<int64_t> cells;       // [groups]
  std::vector<std::string> genes;   // those of the file that the model knows, in its order
  std::vector<double> score;        // [groups, genes]
  std::vector<int64_t> with_gene;   // [groups, genes] cells that express it
  int64_t without_genes = 0;        // cells that are in no group: no gene of theirs is known,
  int64_t without_label = 0;        // or their label is missing
  GeneMatch match;
  SlotChoice slot;

  // Genes of a group with the largest scores, largest first, of equal ones the first in the order
  // of the file; `count` at most.
  std::vector<size_t> largest(size_t group, int64_t count) const;
};

struct AttributionOptions {
  std::string by = {};       // column of obs with the groups; empty: all cells are one, "all"
  int64_t chunk_tokens = 0;  // worked on at once; 0: what suits the device
};

// Reads the cells of a file once. Memory is that of a chunk of cells, and a sum per group and gene.
// The result is the same for any chunk_tokens. What is attached to the model must be on the
// context's device.
//
// Throws ConfigError (E-ATTRIBUTE) where the network does not tell what genes receive, before
// anything is read, or an adapter puts rows among the tokens; DataError (E-NO-COLUMN, E-GROUPS: no
// cell has a label); what the model's reader throws; StoppedError when events.stop_requested says
// so.
GeneAttribution attribute_genes(Context& ctx, const H5ad& file, CellModel& model,
                                const Preparation& preparation, const AttributionOptions& options,
                                const RunEvents& events);

}  // namespace scgraft
