// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace scgraft {

// Tokens of one cell: <cls> with value 0, then the genes.
//   genes, bins   [n] the cell's tokens without <cls>
//   out_*         [n + 1], overwritten
void tokenise(int32_t cls_id, std::span<const int32_t> genes, std::span<const float> bins,
              std::span<int32_t> out_genes, std::span<float> out_values);

// What a cell is, as a number: equal for equal (gene, value) pairs in any order, so that the random
// choices below follow the cell through every file, order and batch.
//   genes, values  [n] token ids and log1p-normalised expression, so that a file of counts and a
//                  normalised one agree
uint64_t cell_key(std::span<const int32_t> genes, std::span<const float> values);

// The random number in [0, 1) that decides among the bins a gene's value ties with; a function of
// (seed, cell, gene) alone.
double tie_break(uint64_t seed, uint64_t key, int32_t gene);

// Which k of n genes of a cell are kept when it is longer than the network takes: a random sample
// without replacement, ascending, so that genes stay in the order of the file's columns (the
// network does not see the order). A function of (seed, key, n, k) alone.
void sample_genes(uint64_t seed, uint64_t key, int32_t n, int32_t k, std::vector<int32_t>& kept);

struct MaskOptions {
  double ratio = 0.4;  // share of a cell's genes that is hidden, 0.15 to 0.4 in pre-training
  float mask_value = -1;
  uint64_t seed = 0;
};

// Hides the values of floor(ratio * genes) random genes of a cell, never of <cls> (position 0).
// Redrawn every epoch; a function of (seed, epoch, cell) alone. (The original also draws <cls> at
// times, whose value of 0 then has to be guessed.)
//   values   [length] true values, <cls> first
//   hidden   [length] overwritten: the values, mask_value where hidden
//   masked   [length] overwritten: 1 where hidden
// Throws ConfigError when the ratio is not in [0, 1).
void mask_values(std::span<const float> values, const MaskOptions& options, int64_t epoch,
                 int64_t cell, std::span<float> hidden, std::span<uint8_t> masked);

}  // namespace scgraft
