// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>
#include <vector>

#include "io/genes.h"
#include "io/h5ad_facts.h"
#include "model/preparation.h"

namespace scgraft {

// Steps that readers of cells share.

// choose_slot() for a model that has to begin with counts. Throws also DataError (E-VALUES-COUNTS)
// when the matrix holds something else.
//   what_for  of the message: "ranks of genes"
SlotChoice choose_counts(const H5ad& file, const std::string& wanted, const std::string& what_for);

// Names of a slot's genes: a text column of its var table, or with an empty key its index. Throws
// DataError: E-NO-COLUMN, E-GENE-KEY.
std::vector<std::string> gene_names_of(const H5ad& file, const MatrixSlot& slot,
                                       const std::string& gene_key);

// Fills the counts of a match from its tokens, and logs W-GENE-LOW-MATCH below 60 %.
//   names  [columns]
void finish_match(const H5ad& file, std::span<const std::string> names, GeneMatch& match);

// The absolute name of a folder of dictionaries; empty stays empty.
std::string absolute_folder(const std::string& folder);

// Throws ModelError (E-PREPARE) when cells were prepared with other dictionaries than those of
// `file`.
//   fingerprint  of what is in `file`
void require_same_dictionaries(const Preparation& preparation, const std::string& fingerprint,
                               const std::string& file);

}  // namespace scgraft
