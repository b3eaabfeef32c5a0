// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>
#include <vector>

#include "io/h5ad_rows.h"
#include "model/cell_reader.h"
#include "model/gene_files.h"
#include "model/preprocess.h"

namespace scgraft {

// Cells of a model that has its genes in one order, from counts.
//   Tokenizer  ScbertBins or ScfoundationTokenizer: made of (order, names, file, options), with
//              tokenise() and positions()
template <class Tokenizer>
class AlignedReader : public CellReader {
 public:
  //   order     the genes of the model in its order, used by the constructor only
  //   what_for  the counts are, for messages: "bins of scBERT"
  // Throws as choose_counts(), gene_names_of() and the tokenizer.
  template <class Options>
  AlignedReader(Context& ctx, const H5ad& file, const Preparation& preparation,
                std::span<const std::string> order, const Options& options,
                const std::string& what_for)
      : ctx_(ctx),
        preparation_(preparation),
        slot_(choose_counts(file, preparation.layer, what_for)),
        reader_(file, slot_.slot),
        names_(gene_names_of(file, file.slot(slot_.slot), preparation.gene_key)),
        tokenizer_(order, names_, file.path(), options) {
    match_.gene_key = preparation.gene_key;
    const std::span<const int32_t> positions = tokenizer_.positions();
    match_.token.assign(positions.begin(), positions.end());
    finish_match(file, names_, match_);
  }

  const SlotChoice& slot() const override { return slot_; }
  const GeneMatch& match() const override { return match_; }
  int64_t cells() const override { return reader_.rows(); }
  Preparation preparation() const override { return preparation_; }
  bool next(TokenisedCells& out, SparseRows* normalised) override {
    if (!reader_.next(rows_)) return false;
    tokenizer_.tokenise(ctx_, rows_, out);
    if (normalised != nullptr) take_normalised(ctx_, rows_, *normalised);
    return true;
  }

 private:
  Context& ctx_;
  Preparation preparation_;
  SlotChoice slot_;
  RowReader reader_;
  std::vector<std::string> names_;
  Tokenizer tokenizer_;
  GeneMatch match_;
  SparseRows rows_;
};

}  // namespace scgraft
