// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/bins.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "io/text.h"
#include "model/parallel_rows.h"
#include "model/preprocess.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr float kTargetSum = 1e4f;
constexpr float kLn2 = std::numbers::ln2_v<float>;

[[noreturn]] void refuse_order(const std::string& message, const std::string& file) {
  ModelError error(message, "E-GENE-ORDER");
  error.set_hint(
      "use the list of genes that came with the model's training data, in its order: position i of "
      "the model is gene i of the list");
  error.set_where(file);
  throw error;
}

}  // namespace

void require_gene_order(std::span<const std::string> genes, int64_t positions,
                        const std::string& file, const std::string& model,
                        const std::string& trained) {
  const auto count = static_cast<int64_t>(genes.size());
  if (count + 1 != positions)
    refuse_order(cat(escaped(file), " lists ", count, " genes; the model ", escaped(model), " has ",
                     positions, " positions, which are ", positions - 1, " genes and one more"),
                 file);
  std::unordered_set<std::string_view> seen;
  for (const std::string& gene : genes)
    if (!seen.insert(gene).second)
      refuse_order(
          cat(escaped(file), " lists the gene \"", escaped(gene, 40),
              "\" twice; every position of the model ", escaped(model), " is another gene"),
          file);
  if (!trained.empty() && gene_order_fingerprint(genes) != trained)
    refuse_order(cat(escaped(file), " lists ", count, " genes, but not those of the model ",
                     escaped(model), " in their order"),
                 file);
}

void scbert_normalise(std::span<float> x) {
  const double total = total_of(x);
  if (!(total > 0)) return;
  const float divisor = static_cast<float>(total) / kTargetSum;
  for (float& value : x) value /= divisor;
}

void scbert_log2(std::span<float> x) {
  // The logarithm is rounded once, from f64: the last bit of a logarithm in f32 is the platform's.
  for (float& value : x)
    if (value != 0) value = static_cast<float>(std::log1p(static_cast<double>(value))) / kLn2;
}

void scbert_bin(std::span<const float> x, int64_t top, std::span<int32_t> tokens) {
  const auto most = static_cast<float>(top);
  for (size_t i = 0; i < x.size(); ++i) tokens[i] = static_cast<int32_t>(std::min(x[i], most));
}

ScbertBins::ScbertBins(std::span<const std::string> reference, std::span<const std::string> genes,
                       std::string file, const ScbertBinOptions& options)
    : file_(std::move(file)),
      options_(options),
      alignment_(reference, genes, file_, options.min_share) {}

void ScbertBins::tokenise(Context& ctx, const SparseRows& rows, TokenisedCells& out) const {
  require(rows.columns == columns(), "ScbertBins: wanted rows of ", columns(), " columns, got ",
          rows.columns);
  require_expression(rows, file_, "the matrix");
  const int64_t cells = rows.rows();
  const auto width = static_cast<size_t>(length());
  out.first_cell = rows.first_row;
  out.offsets.resize(static_cast<size_t>(cells) + 1);
  for (int64_t row = 0; row <= cells; ++row) out.offsets[static_cast<size_t>(row)] = row * length();
  out.genes.assign(static_cast<size_t>(cells) * width, 0);
  out.values.resize(static_cast<size_t>(cells) * width);
  std::vector<uint8_t> expressed(static_cast<size_t>(cells), 0);
  parallel_rows(ctx, cells, [&](int64_t begin, int64_t end) {
    std::vector<float> x(width - 1);
    for (int64_t row = begin; row < end; ++row) {
      const size_t first = static_cast<size_t>(row) * width;
      alignment_.align(rows.columns_of(row), rows.values_of(row), x);
      expressed[static_cast<size_t>(row)] =
          std::any_of(x.begin(), x.end(), [](float value) { return value > 0; });
      scbert_normalise(x);
      scbert_log2(x);
      scbert_bin(x, options_.top, {out.genes.data() + first, x.size()});
      for (size_t i = 0; i < width; ++i) out.values[first + i] = static_cast<float>(i);
    }
  });
  out.empty.clear();
  for (int64_t row = 0; row < cells; ++row)
    if (expressed[static_cast<size_t>(row)] == 0) out.empty.push_back(rows.first_row + row);
}

}  // namespace scgraft
