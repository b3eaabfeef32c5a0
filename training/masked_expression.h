// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/scgpt/network.h"
#include "training/objective.h"

namespace scgraft {

// Masked-value modelling: the hidden values of a cell are predicted twice, from each gene's own row
// (expression decoder) and from the cell embedding (MVC head).
//
//   loss = sum over masked tokens of (decoder(x_t) - target_t)^2 + (mvc(c, g_t) - target_t)^2
//   weight = number of masked tokens
// Source: scGPT's GEP and GEPC objectives with unit weights.
class MaskedExpression : public Objective {
 public:
  // The network must have both heads.
  explicit MaskedExpression(ScgptNetwork& network);

  std::string_view name() const override { return "masked expression"; }
  double weight(std::span<const CellView> cells) const override;
  void run(Context& ctx, const TokenBatch& batch, bool training, const GradientScale& scale,
           ObjectiveSums& sums) override;

 private:
  // The masked tokens of a batch as rows of their own.
  struct HiddenRows {
    PreparedArray<int32_t> row;          // [rows] token of each row
    PreparedArray<int32_t> row_cells;    // [rows] its cell
    PreparedArray<int32_t> row_offsets;  // [cells + 1]
    PreparedArray<int32_t> use_offsets;  // [tokens + 1], use_rows [rows]: rows by token
    PreparedArray<int32_t> use_rows;
    PreparedArray<float> target;  // [rows]
    PreparedArray<uint8_t> mask;  // [rows] all 1
    void clear();
  };
  // Fills hidden_ and returns the number of rows.
  int64_t hide(Context& ctx, const TokenBatch& batch);

  ScgptNetwork& network_;
  HiddenRows hidden_;
  DeviceArrays memory_;
};

}  // namespace scgraft
