// SPDX-License-Identifier: Apache-2.0
#include "model/preprocess.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <utility>

#include "io/text.h"
#include "runtime/error.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

[[noreturn]] void refuse(const SparseRows& rows, int64_t row, size_t k, const std::string& file,
                         const std::string& slot) {
  const float value = rows.values_of(row)[k];
  const bool finite = std::isfinite(value);
  DataError error(cat(escaped(file), ": ", escaped(slot), " of cell ", rows.first_row + row,
                      ", gene column ", rows.columns_of(row)[k], " is ", value,
                      finite ? ", wanted no negative expression" : ", wanted a finite number"),
                  finite ? "E-VALUES-NEGATIVE" : "E-VALUES-NONFINITE");
  error.set_hint("choose another matrix of the file with --layer; scgraft inspect lists them");
  error.set_where(file, slot);
  throw error;
}

}  // namespace

void normalise_log1p(std::span<float> values, double total, double target_sum) {
  if (!(total > 0)) return;
  const float divisor = static_cast<float>(total) / static_cast<float>(target_sum);
  // Most values of a cell of counts are the same few whole numbers: their logarithms are kept.
  constexpr int kKept = 256;
  std::array<float, kKept> logarithm;
  std::bitset<kKept> known;
  for (float& value : values) {
    const auto whole = static_cast<size_t>(value >= 0 && value < kKept ? value : 0);
    if (static_cast<float>(whole) != value) {
      value = std::log1p(value / divisor);
      continue;
    }
    if (!known[whole]) {
      known[whole] = true;
      logarithm[whole] = std::log1p(value / divisor);
    }
    value = logarithm[whole];
  }
}

double total_of(std::span<const float> values) {
  double total = 0;
  for (const float value : values) total += value;
  return total;
}

void normalise_log1p(Context& ctx, SparseRows& rows, double target_sum) {
  constexpr int64_t kBlock = 64;
  parallel_for(ctx, (rows.rows() + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t end = std::min(rows.rows(), (block + 1) * kBlock);
    for (int64_t row = block * kBlock; row < end; ++row) {
      const auto begin = static_cast<size_t>(rows.offsets[static_cast<size_t>(row)]);
      const std::span<float> values(rows.value.data() + begin, rows.values_of(row).size());
      normalise_log1p(values, total_of(values), target_sum);
    }
  });
}

void take_normalised(Context& ctx, SparseRows& rows, SparseRows& out) {
  constexpr double kBaselineTotal = 1e4;
  normalise_log1p(ctx, rows, kBaselineTotal);
  std::swap(out, rows);
}

void require_expression(const SparseRows& rows, const std::string& file, const std::string& slot) {
  for (int64_t row = 0; row < rows.rows(); ++row) {
    const auto values = rows.values_of(row);
    for (size_t k = 0; k < values.size(); ++k)
      if (!(values[k] >= 0) || !std::isfinite(values[k])) [[unlikely]]
        refuse(rows, row, k, file, slot);
  }
}

}  // namespace scgraft
