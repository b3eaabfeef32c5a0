// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace scgraft {

// Working memory of bin_values(), kept between cells.
struct BinningScratch {
  // A value that occurs, and the two edge counts that decide its bin.
  struct Distinct {
    float value;
    int32_t count;
    float left;
    float right;
  };
  std::vector<Distinct> distinct;
  std::vector<int32_t> order;  // of `distinct`, by value
  std::vector<int32_t> slots;  // hash table: place in `distinct`, -1
  std::vector<int32_t> which;  // place in `distinct` of every value
  std::vector<float> sorted;
  std::vector<double> edges;
};

// Bins of one cell's non-zero expression by its own quantiles: 1..n_bins-1; zeros are bin 0 and are
// not passed.
//   edges    n_bins - 1 quantiles of the values at i / (n_bins - 2), linear between neighbours
//   left     number of edges <= value;  right  number of edges < value
//   bin      ceil(u * (right - left) + left)
// A value that equals m edges is spread evenly over the m bins left-m+1..left; u decides. All
// others do not depend on u.
//   values    [n] > 0
//   uniforms  [n] in [0, 1), one per value
//   bins      [n], overwritten; may be `values`
// Bit for bit what scGPT computes from f32 values: quantiles as NumPy 1.24 does (neighbours
// subtracted in f32, the rest in f64). Throws ConfigError for fewer than 3 bins.
// Source: scGPT preprocessing (Cui et al. 2024, Methods, value binning).
void bin_values(std::span<const float> values, int64_t n_bins, std::span<const double> uniforms,
                std::span<float> bins, BinningScratch& scratch);

// The edges alone: [n_bins - 1] of ascending values, at least one.
void quantile_edges(std::span<const float> sorted, int64_t n_bins, std::vector<double>& edges);

}  // namespace scgraft
