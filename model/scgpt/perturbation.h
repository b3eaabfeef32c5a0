// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "model/scgpt/network.h"

namespace scgraft {

// Cells before a perturbation, and what is done to them.
struct PerturbedCells {
  std::span<const int32_t> genes;  // [genes] the token of every column
  ConstTensorView values;          // [cells, genes] f32 in host memory, log1p expression before
  ConstTensorView flags;           // [cells, genes] i32 in host memory, 1 where a gene is perturbed
};

// Which columns a network reads, and predicts.
enum class PredictedGenes {
  expressed,  // those that are not 0 in one of the cells at least
  all,
};

// Expression after a perturbation, as a perturbation network (ScgptConfig::flags) predicts it:
//
//   y[c, g] = a(x) values[c, g] + b(x)   of the columns that it reads, 0 of the others
//
// x are the rows of the cell's tokens, one for each of these columns in their order. The cells of a
// call are the batch that decides what is expressed; how many go through the network together
// changes no bit. A perturbed gene that no cell expresses is not read with
// PredictedGenes::expressed, as in the original.
//
//   returns [cells, genes] f32 in host memory
//
// Throws ModelError (E-MODEL-STYLE) for another network, DataError for shapes that do not fit, a
// token that is none, values that are not finite, and (E-TOKEN-FLAG) for a flag that the model does
// not have.
// Source: scGPT (Cui et al. 2024), TransformerGenerator.
Tensor predict_perturbation(Context& ctx, ScgptNetwork& network, const PerturbedCells& cells,
                            PredictedGenes which);

}  // namespace scgraft
