// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/h5ad_frame.h"
#include "io/matrix.h"
#include "model/geneformer/dictionaries.h"
#include "model/tokenised_cells.h"
#include "runtime/context.h"

namespace scgraft {

// The type in which a count is divided by its cell's total, as NumPy chooses it.
enum class RankArithmetic { f32, f64 };

// f32 when one of the two is float32 and the other float32, float16, boolean or an integer of at
// most 16 bits; else f64.
//   counts, totals  names of types as files say them: "float32", "int64"
RankArithmetic rank_arithmetic(std::string_view counts, std::string_view totals);

// What genes of a cell are ranked by, evaluated from left to right, the last division in f64:
//   count / total * 10000 / median
double rank_value(double count, double total, double median, RankArithmetic arithmetic);

// Totals of all cells of a file, by number.
struct CellTotals {
  std::vector<double> values;    // [cells]; empty: the sum of the cell's row
  std::string type = "float32";  // as the file says it
};
// A column of obs, "n_counts" as published; without that column empty totals (as the original does
// for V2; for V1 it stops).
// Throws DataError (E-OBS-TYPE) when it holds no numbers.
CellTotals read_cell_totals(const Frame& obs, const std::string& column = "n_counts");

// Numbers of the cells whose column is 1, ascending: the selection that TokenStore::append() takes.
// All cells without that column. Throws DataError (E-OBS-TYPE) when it holds no numbers.
std::vector<int64_t> passing_cells(const Frame& obs, const std::string& column = "filter_pass");

struct RankOptions {
  // Tokens of a cell at most, special tokens included; 0: as published, 2048 of V1 and 4096 of V2.
  int64_t max_length = 0;
};

// Throws ConfigError (E-PREPARE) when cells would be longer than the model's positions, or have
// no room for a gene.
//   model  its folder, for messages
void require_positions(const GeneDictionaries& dictionaries, const RankOptions& options,
                       int64_t positions, const std::string& model);

// Cells as Geneformer's rank value encoding: the tokens of a cell's expressed genes by descending
// rank_value(); the value of a token is its place, 0 first.
//   V1  the first 2048 genes. Columns that name the same gene are two tokens.
//   V2  columns of the same gene are summed; <cls>, the first 4094 genes, <eos>
// Genes of equal rank_value() stay in the order of the columns, that of the first for summed ones.
// (The original sorts with NumPy's default, which is not stable: such genes may come out swapped
// there.) Totals have no influence on the order but by rounding.
// The tokens of a cell are a function of its row and total, whatever its chunk and the threads.
// Source: Geneformer's transcriptome tokenizer (Theodoris et al. 2023, Methods).
class RankTokenizer {
 public:
  // `dictionaries` is used by the constructor only.
  //   gene_ids  [columns] of the matrix: Ensembl ids, or what GeneDictionaries::find() knows
  //   file      name for messages
  // Throws DataError (E-GENE-NONE) when no gene has a token, ConfigError (E-PREPARE) when there is
  // no room for a gene.
  RankTokenizer(const GeneDictionaries& dictionaries, std::span<const std::string> gene_ids,
                std::string file, const RankOptions& options = {});

  int64_t columns() const { return static_cast<int64_t>(slot_.size()); }
  int64_t matched() const { return matched_; }  // columns whose gene has a token
  int64_t merged() const { return merged_; }    // of these, columns added to an earlier one (V2)

  // Overwrites `out` with the tokens of a chunk. A cell without an expressed gene of the dictionary
  // has no tokens (V1) or <cls> <eos> (V2), and is listed in out.empty.
  //   rows    counts
  //   totals  of all cells of the file
  //   counts  type of the counts in the file, "float32", "int64"; see rank_arithmetic()
  // Throws DataError: E-VALUES-NEGATIVE, E-VALUES-NONFINITE; E-CELL-TOTAL when the total of a cell
  // with genes is not above 0 or missing.
  void tokenise(Context& ctx, const SparseRows& rows, const CellTotals& totals,
                std::string_view counts, TokenisedCells& out) const;

 private:
  struct Ranked;
  struct Scratch;
  double total_of_row(const SparseRows& rows, int64_t row, const CellTotals& totals) const;
  void require_totals(const SparseRows& rows, const CellTotals& totals) const;
  void rank_row(const SparseRows& rows, int64_t row, double total, RankArithmetic arithmetic,
                Scratch& scratch) const;

  std::string file_;
  int64_t genes_at_most_;
  int32_t cls_id_;  // -1: V1
  int32_t eos_id_;
  std::vector<int32_t> slot_;   // [columns] first column of the same gene, -1: not used
  std::vector<int32_t> token_;  // [columns] of those that are a slot
  std::vector<double> median_;  // [columns] of those that are a slot
  int64_t matched_ = 0;
  int64_t merged_ = 0;
};

}  // namespace scgraft
