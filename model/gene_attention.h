// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "model/batch.h"

namespace scgraft {

// How much attention the genes of a cell receive, in networks that can tell.
class GeneAttention {
 public:
  virtual ~GeneAttention() = default;

  // Of every token of a batch from the tokens of its cell, the mean over layers and heads: a cell's
  // sum to the number of its tokens. In inference; activations as of CellNetwork.
  //   received  [tokens]  f32 in host memory, overwritten
  // Throws ConfigError (E-ATTRIBUTE) where an adapter has put rows among the tokens.
  virtual void received(Context& ctx, const TokenBatch& batch, TensorView received) = 0;

  // What a token of a cell says, as the network's reader makes them.
  struct Gene {
    int32_t token = -1;      // GeneMatch::token of its gene
    bool expressed = false;  // whether the cell has it
  };
  virtual Gene gene(int32_t id, float value) const = 0;
};

}  // namespace scgraft
