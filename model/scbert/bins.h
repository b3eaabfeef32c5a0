// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/matrix.h"
#include "model/gene_alignment.h"
#include "model/tokenised_cells.h"
#include "runtime/context.h"

namespace scgraft {

// Throws ModelError (E-GENE-ORDER) when `genes` cannot be the order in which a scBERT model has its
// positions: their number is not positions - 1 (the last position is no gene), a name occurs
// twice, or the order is not the one with the fingerprint `trained` (empty: not known).
//   file, model  names for messages
void require_gene_order(std::span<const std::string> genes, int64_t positions,
                        const std::string& file, const std::string& model,
                        const std::string& trained = {});

// The steps from aligned expression of one cell to its tokens. All arithmetic is f32, the sum f64.

// x / (sum(x) / 1e4); a cell without expression stays as it is.
void scbert_normalise(std::span<float> x);
// log2(1 + x), computed as ln(1 + x) / ln 2, the logarithm rounded to f32.
void scbert_log2(std::span<float> x);
// trunc(min(x, top)): values below 1 become 0, as if the gene were absent.
//   tokens  [x.size()], overwritten
void scbert_bin(std::span<const float> x, int64_t top, std::span<int32_t> tokens);

struct ScbertBinOptions {
  int64_t top = 5;         // the highest bin; top + 1 is the mask, top + 2 the number of tokens
  double min_share = 0.1;  // of the model's genes that a file must have
};

// Cells as scBERT's tokens: one for every gene of the model in its order, and a 0 behind them.
//   1. expression is aligned to the model's genes: missing ones are 0, others are dropped; of
//      columns with the same name the first is used
//   2. scbert_normalise, scbert_log2, scbert_bin
// A token's value is its position, 0 first. The tokens of a cell are a function of its row,
// whatever its chunk and the threads.
// Source: scBERT (Yang et al. 2022), preprocessing and data set class.
class ScbertBins {
 public:
  // `reference` is used by the constructor only.
  //   reference  the genes of the model in its order; see require_gene_order()
  //   genes      [columns] names of the matrix's columns, matched exactly
  //   file       name for messages
  // Throws DataError: E-GENE-NONE when no gene of the model is there, E-GENE-FEW when fewer than
  // options.min_share of them are.
  ScbertBins(std::span<const std::string> reference, std::span<const std::string> genes,
             std::string file, const ScbertBinOptions& options = {});

  int64_t columns() const { return alignment_.columns(); }
  int64_t length() const { return alignment_.genes() + 1; }  // tokens of every cell
  int64_t matched() const { return alignment_.matched(); }   // genes of the model in the file
  // [columns] the position of each, -1: not used.
  std::span<const int32_t> positions() const { return alignment_.positions(); }

  // One cell's expression in the model's order.
  //   aligned  [length() - 1], overwritten
  void align(std::span<const int32_t> columns, std::span<const float> values,
             std::span<float> aligned) const {
    alignment_.align(columns, values, aligned);
  }

  // Overwrites `out` with the tokens of a chunk: length() per cell, eight bytes each, whatever is
  // expressed. Cells without expression of the model's genes are listed in out.empty.
  // Throws DataError: E-VALUES-NEGATIVE, E-VALUES-NONFINITE.
  void tokenise(Context& ctx, const SparseRows& rows, TokenisedCells& out) const;

 private:
  std::string file_;
  ScbertBinOptions options_;
  GeneAlignment alignment_;
};

}  // namespace scgraft
