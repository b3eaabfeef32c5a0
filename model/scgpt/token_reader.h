// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "io/h5ad_rows.h"
#include "io/vocabulary.h"
#include "model/cell_reader.h"
#include "runtime/context.h"

namespace scgraft {

// Reads the cells of an .h5ad file as tokens, chunk by chunk, in memory of a chunk:
//   1. genes that the model does not know are dropped,
//   2. every cell is divided by (its total over known genes / target_sum) and log1p is taken;
//      values that are log1p-normalised already are used as they are,
//   3. genes are restricted to `genes`, or to the highly variable ones,
//   4. non-zero values are binned by quantiles of the cell (binning.h),
//   5. <cls> is put in front, and a longer cell is sampled down to max_length.
// The tokens of a cell are a function of its expression and the preparation, whatever its place in
// the file, the chunks and the threads.
//
// `ctx` outlives the reader; `file` and `vocabulary` are used by the constructor only.
// Throws DataError as choose_slot(), match_genes() and RowReader do, E-VALUES-NEGATIVE and
// E-VALUES-NONFINITE naming the cell; ModelError (E-PREPARE) when `genes` names no token of the
// vocabulary; ConfigError (E-HVG-VALUES) when seurat_v3 is asked of data without counts.
//
//   TokenReader reader(ctx, file, vocabulary, cls_id, preparation);
//   for (TokenisedCells cells; reader.next(cells);) store.append(cells);
class TokenReader : public CellReader {
 public:
  TokenReader(Context& ctx, const H5ad& file, const Vocabulary& vocabulary, int32_t cls_id,
              const Preparation& preparation, RowReaderOptions options = {});

  const SlotChoice& slot() const override { return slot_; }
  const GeneMatch& match() const override { return match_; }
  int64_t cells() const override { return reader_.rows(); }
  // Where genes were chosen by their variation, with the choice.
  Preparation preparation() const override;
  // Tokens that cells may have, in the order of the file's columns: what to keep as
  // Preparation::genes for data that comes later.
  const std::vector<std::string>& genes() const { return genes_; }

  // Every cell starts with <cls>, whose value is 0; the values of genes are bins. A cell without a
  // known expressed gene is <cls> alone.
  bool next(TokenisedCells& out, SparseRows* normalised = nullptr) override;
  void rewind() { reader_.rewind(); }

 private:
  struct Scratch;
  void restrict_genes(const Vocabulary& vocabulary);
  void choose_variable_genes();
  bool takes_logarithm() const { return slot_.facts.kind != ValueKind::log1p; }
  int64_t count_expressed(int64_t row) const;
  void tokenise_row(int64_t row, Scratch& scratch, TokenisedCells& out) const;

  Context& ctx_;
  std::string file_;
  int32_t cls_id_;
  Preparation preparation_;
  SlotChoice slot_;
  GeneMatch match_;
  RowReader reader_;
  std::vector<int32_t> use_;        // [columns] token of a column that becomes tokens, -1: none
  std::vector<std::string> genes_;  // of use_, in its order
  SparseRows rows_;
};

}  // namespace scgraft
