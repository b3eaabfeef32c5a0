// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/binning.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace scgraft {

void quantile_edges(std::span<const float> sorted, int64_t n_bins, std::vector<double>& edges) {
  const int64_t intervals = n_bins - 2;
  const auto last = static_cast<double>(sorted.size() - 1);
  const double step = 1.0 / static_cast<double>(intervals);
  edges.resize(static_cast<size_t>(n_bins - 1));
  for (int64_t i = 0; i <= intervals; ++i) {
    const double quantile = i == intervals ? 1.0 : static_cast<double>(i) * step;
    const double position = quantile * last;
    const auto low = static_cast<size_t>(position);
    const size_t high = std::min(low + 1, sorted.size() - 1);
    const double fraction = position - static_cast<double>(low);
    const float difference = sorted[high] - sorted[low];
    // Product and sum in two statements: fused into one they would round differently.
    const double part = difference * (fraction < 0.5 ? fraction : 1 - fraction);
    edges[static_cast<size_t>(i)] = fraction < 0.5 ? sorted[low] + part : sorted[high] - part;
  }
}

void bin_values(std::span<const float> values, int64_t n_bins, std::span<const double> uniforms,
                std::span<float> bins, BinningScratch& scratch) {
  require<ConfigError>(n_bins >= 3, "binning needs at least 3 bins, got ", n_bins);
  require(uniforms.size() == values.size() && bins.size() == values.size(), "bin_values: wanted ",
          values.size(), " uniforms and bins, got ", uniforms.size(), " and ", bins.size());
  if (values.empty()) return;
  scratch.sorted.assign(values.begin(), values.end());
  std::sort(scratch.sorted.begin(), scratch.sorted.end());
  quantile_edges(scratch.sorted, n_bins, scratch.edges);
  const auto& edges = scratch.edges;
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = values[i];
    const auto equal = std::equal_range(edges.begin(), edges.end(), value);
    const auto right = static_cast<double>(equal.first - edges.begin());
    const auto left = static_cast<double>(equal.second - edges.begin());
    const double down = uniforms[i] * (right - left);
    bins[i] = static_cast<float>(std::ceil(down + left));
  }
}

}  // namespace scgraft
