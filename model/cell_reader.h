// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "io/genes.h"
#include "io/h5ad_facts.h"
#include "io/matrix.h"
#include "model/preparation.h"
#include "model/tokenised_cells.h"

namespace scgraft {

// Reads the cells of an .h5ad file as tokens of a model, chunk by chunk, in memory of a chunk. The
// tokens of a cell are a function of its expression and the preparation, whatever its place in the
// file, the chunks and the threads.
class CellReader {
 public:
  virtual ~CellReader() = default;

  virtual const SlotChoice& slot() const = 0;
  virtual const GeneMatch& match() const = 0;
  virtual int64_t cells() const = 0;
  // How cells that come later have to be prepared: with what was found in this file.
  virtual Preparation preparation() const = 0;

  // Overwrites `out` with the next cells, at least one; false at the end. Every cell has a token;
  // one without a known expressed gene is listed in out.empty.
  //   normalised  when given, overwritten with the same cells' log1p-normalised rows over all
  //               columns of the file (totals over all columns): input for baselines
  virtual bool next(TokenisedCells& out, SparseRows* normalised = nullptr) = 0;
};

}  // namespace scgraft
