// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "io/vocabulary.h"

namespace scgraft {

// Which column of a matrix is which token of a model.
struct GeneMatch {
  std::string gene_key;                // column of var that was used; empty: its index
  std::vector<int32_t> token;          // [columns] id, -1: not used
  int64_t matched = 0;                 // columns with a token
  int64_t duplicates = 0;              // columns not used because an earlier one has their name
  std::vector<std::string> unmatched;  // names without a token, the first twenty

  int64_t columns() const { return static_cast<int64_t>(token.size()); }
  // Share of the columns whose gene the model knows.
  double share() const {
    return token.empty()
               ? 0
               : static_cast<double>(matched + duplicates) / static_cast<double>(token.size());
  }
};

// Looks the genes of a slot up in a model's vocabulary, exact and case-sensitive. Of columns with
// the same name the first is used. Tokens in angle brackets ("<pad>") are no genes.
//   gene_key  column of the slot's var table that names the genes; empty: its index
// Logs W-GENE-LOW-MATCH below 60 %. Throws DataError: E-GENE-NONE (no gene is known; the hint names
// the var column that fits, when one does), E-NO-COLUMN (gene_key does not exist), E-GENE-KEY (it
// holds no text).
GeneMatch match_genes(const H5ad& file, const MatrixSlot& slot, const std::string& gene_key,
                      const Vocabulary& vocabulary);

}  // namespace scgraft
