// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace scgraft {

// Rows of a data set on either side of a split, both ascending. Rows whose label is missing (-1)
// are on neither side; a task without labels passes zeros.
struct Split {
  std::vector<int64_t> train;
  std::vector<int64_t> validation;
};

// Random split that keeps the share of each label: a pure function of (labels, fraction, seed).
//
// Each label gives fraction * n_c cells to validation, rounded so that the total is
// round(fraction * n) (largest remainder first), but always keeps one cell in training: a label
// with a single cell is in training only.
//
//   labels               [n]  -1 = missing
//   validation_fraction  above 0, below 1, else ConfigError
//
// Throws DataError("E-SPLIT") when no label has two cells.
Split stratified_split(std::span<const int32_t> labels, double validation_fraction, uint64_t seed);

// Split in which no group (donor, batch) is on both sides.
//
// Groups are looked at in an order drawn from the seed; one goes to validation when that lowers
//   (v / n - f)^2 + mean over labels of (v_c / n_c - f)^2
// with v cells, v_c cells of label c in validation and f the fraction, until none does. At least
// one group is on each side.
//
//   labels  [n]  -1 = missing
//   groups  [n]  group of each cell; cells with -1 (no group known) count as one group
//
// Throws ConfigError for the fraction, DataError("E-SPLIT") when all labelled cells are one group.
Split group_split(std::span<const int32_t> labels, std::span<const int32_t> groups,
                  double validation_fraction, uint64_t seed);

// k splits whose validation parts do not overlap and hold every labelled cell once, except cells
// that are the only one of their label, which are in training always. Labels are spread evenly:
// the cells of a label differ by at most one between folds, and so do the sizes of the folds.
//
//   labels  [n]  -1 = missing
//   folds   at least 2, else ConfigError
//
// Throws DataError("E-SPLIT") when a fold would be empty.
std::vector<Split> stratified_folds(std::span<const int32_t> labels, int folds, uint64_t seed);

}  // namespace scgraft
