// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/binning.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "runtime/error.h"

namespace scgraft {
namespace {

// Lists the distinct values of a cell and which of them every value is. Counts have a few dozen,
// so that all that follows is done for those only.
void list_distinct(std::span<const float> values, BinningScratch& s) {
  const int bits = std::bit_width(2 * values.size());
  s.slots.assign(size_t{1} << bits, -1);
  const size_t mask = s.slots.size() - 1;
  s.distinct.clear();
  s.which.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const auto key = std::bit_cast<uint32_t>(values[i]);
    size_t slot = (key * uint64_t{0x9E3779B97F4A7C15u}) >> (64 - bits);
    while (s.slots[slot] >= 0 && s.distinct[static_cast<size_t>(s.slots[slot])].value != values[i])
      slot = (slot + 1) & mask;
    if (s.slots[slot] < 0) {
      s.slots[slot] = static_cast<int32_t>(s.distinct.size());
      s.distinct.push_back({values[i], 0, 0, 0});
    }
    s.which[i] = s.slots[slot];
    ++s.distinct[static_cast<size_t>(s.slots[slot])].count;
  }
  s.order.resize(s.distinct.size());
  std::iota(s.order.begin(), s.order.end(), 0);
  std::sort(s.order.begin(), s.order.end(), [&](int32_t a, int32_t b) {
    return s.distinct[static_cast<size_t>(a)].value < s.distinct[static_cast<size_t>(b)].value;
  });
}

}  // namespace

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
  list_distinct(values, scratch);
  scratch.sorted.clear();
  for (const int32_t d : scratch.order) {
    const auto& distinct = scratch.distinct[static_cast<size_t>(d)];
    scratch.sorted.insert(scratch.sorted.end(), static_cast<size_t>(distinct.count),
                          distinct.value);
  }
  quantile_edges(scratch.sorted, n_bins, scratch.edges);
  // Values ascend and so do edges: one walk along both.
  size_t below = 0;
  size_t not_above = 0;
  for (const int32_t d : scratch.order) {
    auto& distinct = scratch.distinct[static_cast<size_t>(d)];
    const double value = distinct.value;
    while (below < scratch.edges.size() && scratch.edges[below] < value) ++below;
    while (not_above < scratch.edges.size() && scratch.edges[not_above] <= value) ++not_above;
    distinct.right = static_cast<float>(below);
    distinct.left = static_cast<float>(not_above);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& distinct = scratch.distinct[static_cast<size_t>(scratch.which[i])];
    const double left = distinct.left;
    const double right = distinct.right;
    bins[i] = static_cast<float>(std::ceil(uniforms[i] * (right - left) + left));
  }
}

}  // namespace scgraft
