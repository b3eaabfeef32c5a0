// SPDX-License-Identifier: Apache-2.0
#include "model/tokenised_cells.h"

namespace scgraft {

CellView TokenisedCells::view(int64_t i) const {
  const auto begin = static_cast<size_t>(offsets[static_cast<size_t>(i)]);
  const auto length = static_cast<size_t>(offsets[static_cast<size_t>(i) + 1]) - begin;
  return {.cell = first_cell + i,
          .genes = {genes.data() + begin, length},
          .values = {values.data() + begin, length},
          .targets = {},
          .masked = {}};
}

}  // namespace scgraft
