// SPDX-License-Identifier: Apache-2.0
#include "training/sparse_features.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "runtime/error.h"
#include "training/parallel_blocks.h"

namespace scgraft {
namespace {

constexpr double kTargetTotal = 1e4;

// The sum of a row, after a look at every value.
double checked_total(const SparseRows& rows, int64_t row, FeatureInput input) {
  double total = 0;
  for (const float v : rows.values_of(row)) {
    if (!std::isfinite(v) || (input == FeatureInput::counts && v < 0)) {
      DataError error(cat("cell ", rows.first_row + row, " has the value ", v, ", ",
                          input == FeatureInput::counts ? "counts of 0 or more" : "finite values",
                          " were wanted"),
                      "E-VALUE");
      error.set_hint("choose another matrix of the file: raw or the name of a layer");
      throw error;
    }
    total += v;
  }
  return total;
}

void check_chunk(const SparseFeatures& features, const SparseRows& rows,
                 std::span<const int32_t> column_of) {
  require(features.columns > 0 || rows.columns == 0, "features: the number of columns is not set");
  if (column_of.empty()) {
    require(rows.columns == features.columns, "features: ", features.columns,
            " columns were wanted, the chunk has ", rows.columns);
    return;
  }
  require(static_cast<int64_t>(column_of.size()) == rows.columns, "features: column_of has ",
          column_of.size(), " entries, the chunk has ", rows.columns, " columns");
  std::vector<bool> taken(static_cast<size_t>(features.columns), false);
  for (const int32_t c : column_of) {
    require(c < features.columns, "features: column_of holds ", c, ", there are ", features.columns,
            " columns");
    if (c < 0) continue;
    require(!taken[static_cast<size_t>(c)], "features: two genes share column ", c);
    taken[static_cast<size_t>(c)] = true;
  }
}

}  // namespace

std::span<const int32_t> SparseFeatures::columns_of(int64_t row) const {
  const auto r = static_cast<size_t>(row);
  return {column.data() + offsets[r], static_cast<size_t>(offsets[r + 1] - offsets[r])};
}

std::span<const float> SparseFeatures::values_of(int64_t row) const {
  const auto r = static_cast<size_t>(row);
  return {value.data() + offsets[r], static_cast<size_t>(offsets[r + 1] - offsets[r])};
}

void SparseFeatures::append(const SparseRows& rows, std::span<const int64_t> wanted,
                            FeatureInput input, std::span<const int32_t> column_of) {
  if (columns == 0 && column_of.empty()) columns = rows.columns;
  check_chunk(*this, rows, column_of);
  require(std::is_sorted(wanted.begin(), wanted.end()), "features: wanted rows must ascend");
  std::vector<std::pair<int32_t, float>> entries;
  const auto first = std::lower_bound(wanted.begin(), wanted.end(), rows.first_row);
  for (auto it = first; it != wanted.end() && *it < rows.first_row + rows.rows(); ++it) {
    const int64_t row = *it - rows.first_row;
    const double total = checked_total(rows, row, input);
    const auto from = rows.columns_of(row);
    const auto values = rows.values_of(row);
    entries.clear();
    for (size_t k = 0; k < from.size(); ++k) {
      const int32_t c = column_of.empty() ? from[k] : column_of[static_cast<size_t>(from[k])];
      if (c < 0 || values[k] == 0) continue;
      const double v = values[k];
      entries.emplace_back(c, input == FeatureInput::log1p
                                  ? values[k]
                                  : static_cast<float>(std::log1p(kTargetTotal * v / total)));
    }
    if (!column_of.empty()) std::sort(entries.begin(), entries.end());
    for (const auto& [c, v] : entries) {
      column.push_back(c);
      value.push_back(v);
    }
    offsets.push_back(static_cast<int64_t>(column.size()));
  }
}

SparseFeatures SparseFeatures::selected(std::span<const int64_t> rows_wanted) const {
  SparseFeatures out;
  out.columns = columns;
  for (const int64_t r : rows_wanted) {
    require(r >= 0 && r < rows(), "features: row ", r, " was wanted, there are ", rows());
    const auto c = columns_of(r);
    const auto v = values_of(r);
    out.column.insert(out.column.end(), c.begin(), c.end());
    out.value.insert(out.value.end(), v.begin(), v.end());
    out.offsets.push_back(static_cast<int64_t>(out.column.size()));
  }
  return out;
}

SparseFeatures SparseFeatures::transposed() const {
  require<DataError>(rows() <= std::numeric_limits<int32_t>::max(), "baselines take at most ",
                     std::numeric_limits<int32_t>::max(), " cells, got ", rows());
  SparseFeatures out;
  out.columns = rows();
  out.offsets.assign(static_cast<size_t>(columns) + 1, 0);
  for (const int32_t c : column) ++out.offsets[static_cast<size_t>(c) + 1];
  for (size_t c = 1; c < out.offsets.size(); ++c) out.offsets[c] += out.offsets[c - 1];
  std::vector<int64_t> next(out.offsets.begin(), out.offsets.end() - 1);
  out.column.resize(column.size());
  out.value.resize(value.size());
  for (int64_t r = 0; r < rows(); ++r) {
    const auto c = columns_of(r);
    const auto v = values_of(r);
    for (size_t k = 0; k < c.size(); ++k) {
      const auto place = static_cast<size_t>(next[static_cast<size_t>(c[k])]++);
      out.column[place] = static_cast<int32_t>(r);
      out.value[place] = v[k];
    }
  }
  return out;
}

template <class T>
void multiply(Context& ctx, const SparseFeatures& x, std::span<const T> dense, int64_t width,
              std::span<double> y) {
  require(static_cast<int64_t>(dense.size()) == x.columns * width &&
              static_cast<int64_t>(y.size()) == x.rows() * width,
          "multiply: ", x.rows(), " x ", x.columns, " times width ", width, ", got ", dense.size(),
          " factors and ", y.size(), " results");
  const auto stored = static_cast<int64_t>(x.column.size());
  const int64_t work = (stored / std::max<int64_t>(1, x.rows()) + 1) * width;
  parallel_blocks(ctx, x.rows(), work, [&](int64_t r) {
    double* out = y.data() + r * width;
    std::fill(out, out + width, 0.0);
    const auto columns = x.columns_of(r);
    const auto values = x.values_of(r);
    for (size_t k = 0; k < columns.size(); ++k) {
      const T* row = dense.data() + columns[k] * width;
      const double v = values[k];
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) out[j] += v * static_cast<double>(row[j]);
    }
  });
}

template void multiply<float>(Context&, const SparseFeatures&, std::span<const float>, int64_t,
                              std::span<double>);
template void multiply<double>(Context&, const SparseFeatures&, std::span<const double>, int64_t,
                               std::span<double>);

}  // namespace scgraft
