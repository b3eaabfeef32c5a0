// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "io/h5ad.h"

namespace scgraft {

// What the numbers of an expression matrix are.
//   counts  whole numbers, none negative
//   log1p   log(1 + normalised): none negative, not whole, below 20
//   scaled  negative values (z-scores, residuals)
//   other   none of these, e.g. counts per million, or values that are not finite
//   none    no matrix that can be read
enum class ValueKind { counts, log1p, scaled, other, none };
const char* name_of(ValueKind kind);

// What was seen in the first rows of a slot.
struct ValueFacts {
  ValueKind kind = ValueKind::none;
  int64_t rows = 0;      // looked at
  int64_t nonzeros = 0;  // looked at
  double min = 0;        // of these non-zeros
  double max = 0;
  // Of log1p: the total every cell was normalised to, where the row sums of expm1 agree within 1 %.
  std::optional<double> target_sum;
};

// Looks at rows until a million non-zeros were seen, or at all.
// Throws DataError as RowReader does; a slot of format none has kind none.
ValueFacts value_facts(const H5ad& file, const MatrixSlot& slot);

// How genes are named: HGNC-like symbols ("CD3D"), Ensembl ids with or without version
// ("ENSG00000167286.10"), or anything else (Entrez numbers, probes). More than half decides.
enum class GeneIdKind { symbol, ensembl, other };
const char* name_of(GeneIdKind kind);
GeneIdKind gene_id_kind(std::span<const std::string> names);

struct SlotChoice {
  std::string slot;  // path, as RowReader takes it
  ValueFacts facts;
  std::string reason;  // one sentence for the user
};

// Decides which matrix of the file is the expression.
//   wanted  a slot by name or path, or "auto": counts before log1p-normalised values before other
//           non-negative ones; for counts X, layers/counts, the other layers, raw; for the rest X,
//           raw, the layers
// Throws DataError: E-VALUES-SCALED (only z-scores, or they were asked for), E-VALUES-NONE (nothing
// readable), E-NO-SLOT.
SlotChoice choose_slot(const H5ad& file, const std::string& wanted);

}  // namespace scgraft
