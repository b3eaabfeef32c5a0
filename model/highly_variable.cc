// SPDX-License-Identifier: Apache-2.0
#include "model/highly_variable.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "io/text.h"
#include "model/loess.h"
#include "model/preprocess.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr double kLoessSpan = 0.3;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Calls body(column, value) for every entry of a candidate column, row by row; values normalised
// over the candidates and logged when target_sum is given.
void for_each_value(RowReader& reader, std::span<const uint8_t> candidates, double target_sum,
                    const std::string& file, const std::function<void(size_t, double)>& body) {
  reader.rewind();
  std::vector<size_t> columns;
  std::vector<float> values;
  for (SparseRows rows; reader.next(rows);) {
    require_expression(rows, file, reader.slot().path);
    for (int64_t row = 0; row < rows.rows(); ++row) {
      columns.clear();
      values.clear();
      for (size_t k = 0; k < rows.columns_of(row).size(); ++k) {
        const auto column = static_cast<size_t>(rows.columns_of(row)[k]);
        if (candidates[column] == 0) continue;
        columns.push_back(column);
        values.push_back(rows.values_of(row)[k]);
      }
      if (target_sum > 0) normalise_log1p(values, total_of(values), target_sum);
      for (size_t k = 0; k < columns.size(); ++k) body(columns[k], values[k]);
    }
  }
  reader.rewind();
}

struct Moments {
  std::vector<double> mean;      // [columns]
  std::vector<double> variance;  // [columns], unbiased
};

Moments moments_of(RowReader& reader, std::span<const uint8_t> candidates, double target_sum,
                   const std::string& file) {
  Moments m{std::vector<double>(candidates.size(), 0), std::vector<double>(candidates.size(), 0)};
  for_each_value(reader, candidates, target_sum, file, [&](size_t column, double value) {
    m.mean[column] += value;
    m.variance[column] += value * value;
  });
  const auto cells = static_cast<double>(reader.rows());
  for (size_t c = 0; c < candidates.size(); ++c) {
    m.mean[c] /= cells;
    const double biased = m.variance[c] / cells - m.mean[c] * m.mean[c];
    m.variance[c] = std::max(0.0, biased * cells / (cells - 1));
  }
  return m;
}

// Variance of every column after values are clipped at sqrt(cells) deviations above the mean, in
// units of the variance that columns of this mean have.
std::vector<double> clipped_variance(RowReader& reader, std::span<const uint8_t> candidates,
                                     const std::string& file) {
  const Moments m = moments_of(reader, candidates, 0, file);
  std::vector<size_t> varying;
  std::vector<double> x;
  std::vector<double> y;
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c] == 0 || !(m.variance[c] > 0)) continue;
    varying.push_back(c);
    x.push_back(std::log10(m.mean[c]));
    y.push_back(std::log10(m.variance[c]));
  }
  const std::vector<double> curve = loess(x, y, kLoessSpan);
  const auto cells = static_cast<double>(reader.rows());
  std::vector<double> expected(candidates.size(), 1);  // a column without variance expects 10^0
  for (size_t i = 0; i < varying.size(); ++i) expected[varying[i]] = std::pow(10, curve[i]);
  std::vector<double> limit(candidates.size());
  for (size_t c = 0; c < candidates.size(); ++c)
    limit[c] = std::sqrt(expected[c] * cells) + m.mean[c];

  std::vector<double> sum(candidates.size(), 0);
  std::vector<double> squares(candidates.size(), 0);
  for_each_value(reader, candidates, 0, file, [&](size_t column, double value) {
    const double clipped = std::min(value, limit[column]);
    sum[column] += clipped;
    squares[column] += clipped * clipped;
  });
  std::vector<double> score(candidates.size());
  for (size_t c = 0; c < candidates.size(); ++c)
    score[c] = (cells * m.mean[c] * m.mean[c] + squares[c] - 2 * sum[c] * m.mean[c]) /
               ((cells - 1) * expected[c]);
  return score;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Linear between neighbours; values ascending.
double percentile(const std::vector<double>& values, double percent) {
  const double at = percent / 100 * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

// Dispersions of all columns of similar mean (bins of five per cent of the columns; the lowest
// tenth is one bin), as distance from their median in median absolute deviations. NaN where a bin
// has no deviation.
std::vector<double> dispersion_distance(RowReader& reader, std::span<const uint8_t> candidates,
                                        double target_sum, const std::string& file) {
  Moments m = moments_of(reader, candidates, target_sum, file);
  std::vector<double> dispersion(candidates.size(), kNan);
  std::vector<double> sorted;
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c] == 0) continue;
    if (m.mean[c] == 0) m.mean[c] = 1e-12;
    dispersion[c] = m.variance[c] / m.mean[c];
    sorted.push_back(m.mean[c]);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<double> edges;
  for (int percent = 10; percent <= 100; percent += 5) edges.push_back(percentile(sorted, percent));
  std::vector<std::vector<size_t>> bins(edges.size() + 1);
  for (size_t c = 0; c < candidates.size(); ++c)
    if (candidates[c] != 0)
      bins[static_cast<size_t>(std::lower_bound(edges.begin(), edges.end(), m.mean[c]) -
                               edges.begin())]
          .push_back(c);
  std::vector<double> score(candidates.size(), kNan);
  for (const std::vector<size_t>& bin : bins) {
    if (bin.empty()) continue;
    std::vector<double> values;
    for (const size_t c : bin) values.push_back(dispersion[c]);
    const double middle = median(values);
    for (double& value : values) value = std::abs(value - middle);
    const double deviation = median(values) / 0.6744897501960817;  // of a normal distribution
    for (const size_t c : bin) score[c] = (dispersion[c] - middle) / deviation;
  }
  return score;
}

}  // namespace

HvgFlavour parse_hvg_flavour(const std::string& name) {
  if (name == "seurat_v3") return HvgFlavour::seurat_v3;
  if (name == "cell_ranger") return HvgFlavour::cell_ranger;
  throw ConfigError(cat("hvg must be seurat_v3 or cell_ranger, not \"", escaped(name, 40), "\""),
                    "E-HVG");
}

std::vector<int32_t> highly_variable(RowReader& reader, std::span<const uint8_t> candidates,
                                     const HvgOptions& options, const std::string& file) {
  require(static_cast<int64_t>(candidates.size()) == reader.columns(),
          "highly_variable: wanted a flag for each of ", reader.columns(), " columns, got ",
          candidates.size());
  if (options.count <= 0)
    throw ConfigError(
        cat("the number of highly variable genes must be at least 1, got ", options.count),
        "E-HVG");
  if (reader.rows() < 2)
    throw DataError(
        cat(escaped(file), ": variable genes need at least 2 cells, the file has ", reader.rows()),
        "E-HVG-CELLS");
  const bool v3 = options.flavour == HvgFlavour::seurat_v3;
  const std::vector<double> score =
      v3 ? clipped_variance(reader, candidates, file)
         : dispersion_distance(reader, candidates, options.target_sum, file);
  std::vector<int32_t> chosen;
  for (size_t c = 0; c < candidates.size(); ++c)
    if (candidates[c] != 0 && !std::isnan(score[c])) chosen.push_back(static_cast<int32_t>(c));
  const auto value = [&](int32_t column) { return score[static_cast<size_t>(column)]; };
  std::stable_sort(chosen.begin(), chosen.end(),
                   [&](int32_t a, int32_t b) { return value(a) > value(b); });
  auto count =
      static_cast<size_t>(std::min<int64_t>(options.count, static_cast<int64_t>(chosen.size())));
  while (!v3 && count > 0 && count < chosen.size() &&
         value(chosen[count]) == value(chosen[count - 1]))
    ++count;
  chosen.resize(count);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace scgraft
