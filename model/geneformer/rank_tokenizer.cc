// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/rank_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "io/text.h"
#include "model/parallel_rows.h"
#include "model/preprocess.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr double kTargetSum = 10000;  // contained in the published medians

// What is exact in f32, so that NumPy computes with float32 in f32.
bool is_short(std::string_view type) {
  for (const char* name : {"float32", "float16", "bool", "int8", "uint8", "int16", "uint16"})
    if (type == name) return true;
  return false;
}

// Tokens of a cell that are no genes.
int64_t specials(const GeneDictionaries& dictionaries) {
  return dictionaries.generation == GeneformerGeneration::v2 ? 2 : 0;
}

int64_t length_limit(const GeneDictionaries& dictionaries, const RankOptions& options) {
  const int64_t length =
      options.max_length == 0 ? dictionaries.published_length() : options.max_length;
  if (length <= specials(dictionaries))
    throw ConfigError(cat("cells of at most ", length, " tokens have no room for a gene"),
                      "E-PREPARE");
  return length;
}

// The numbers of a column of obs, NaN where missing.
std::vector<double> numbers_of(const Frame& obs, const std::string& name) {
  const Column column = obs.read(name);
  std::vector<double> numbers;
  if (const auto* integers = std::get_if<Integers>(&column.values)) {
    numbers.assign(integers->begin(), integers->end());
  } else if (const auto* reals = std::get_if<Reals>(&column.values)) {
    numbers = *reals;
  } else if (const auto* booleans = std::get_if<Booleans>(&column.values)) {
    numbers.assign(booleans->values.begin(), booleans->values.end());
  } else {
    DataError error(cat("column \"", escaped(name), "\" of obs holds ",
                        name_of(obs.info(name).kind), " values, wanted numbers"),
                    "E-OBS-TYPE");
    error.set_where({}, escaped(name));
    throw error;
  }
  for (int64_t row = 0; row < column.size(); ++row)
    if (column.is_missing(row))
      numbers[static_cast<size_t>(row)] = std::numeric_limits<double>::quiet_NaN();
  return numbers;
}

}  // namespace

RankArithmetic rank_arithmetic(std::string_view counts, std::string_view totals) {
  const bool single =
      (counts == "float32" && is_short(totals)) || (totals == "float32" && is_short(counts));
  return single ? RankArithmetic::f32 : RankArithmetic::f64;
}

double rank_value(double count, double total, double median, RankArithmetic arithmetic) {
  if (arithmetic == RankArithmetic::f64) return count / total * kTargetSum / median;
  const float share = static_cast<float>(count) / static_cast<float>(total);
  return static_cast<double>(share * static_cast<float>(kTargetSum)) / median;
}

CellTotals read_cell_totals(const Frame& obs, const std::string& column) {
  if (!obs.has(column)) return {};
  return {.values = numbers_of(obs, column), .type = obs.info(column).stored};
}

std::vector<int64_t> passing_cells(const Frame& obs, const std::string& column) {
  std::vector<int64_t> cells;
  if (!obs.has(column)) {
    cells.resize(static_cast<size_t>(obs.size()));
    std::iota(cells.begin(), cells.end(), int64_t{0});
    return cells;
  }
  const std::vector<double> pass = numbers_of(obs, column);
  for (size_t cell = 0; cell < pass.size(); ++cell)
    if (pass[cell] == 1) cells.push_back(static_cast<int64_t>(cell));
  return cells;
}

void require_positions(const GeneDictionaries& dictionaries, const RankOptions& options,
                       int64_t positions, const std::string& model) {
  const int64_t length = length_limit(dictionaries, options);
  if (length <= positions) return;
  ConfigError error(cat("cells of up to ", length, " tokens were asked for; the model ",
                        escaped(model), " has ", positions, " positions"),
                    "E-PREPARE");
  error.set_hint(cat("at most ", positions, " tokens per cell"));
  throw error;
}

struct RankTokenizer::Ranked {
  double value;  // a count first, then what it is ranked by
  int32_t slot;
};

// Working memory of a thread.
struct RankTokenizer::Scratch {
  std::vector<Ranked> genes;
};

RankTokenizer::RankTokenizer(const GeneDictionaries& dictionaries,
                             std::span<const std::string> gene_ids, std::string file,
                             const RankOptions& options)
    : file_(std::move(file)),
      genes_at_most_(length_limit(dictionaries, options) - specials(dictionaries)),
      cls_id_(dictionaries.cls_id),
      eos_id_(dictionaries.eos_id),
      slot_(gene_ids.size(), -1),
      token_(gene_ids.size(), -1),
      median_(gene_ids.size(), 0) {
  const bool sums = dictionaries.generation == GeneformerGeneration::v2;
  std::unordered_map<int32_t, int32_t> first;  // column of a token
  for (size_t column = 0; column < gene_ids.size(); ++column) {
    const auto token = dictionaries.find(gene_ids[column]);
    if (!token) continue;
    ++matched_;
    const auto here = static_cast<int32_t>(column);
    slot_[column] = sums ? first.try_emplace(*token, here).first->second : here;
    merged_ += slot_[column] != here;
    token_[column] = *token;
    median_[column] = dictionaries.medians[static_cast<size_t>(*token)];
  }
  if (matched_ > 0) return;
  DataError error(cat(escaped(file_), ": none of its ", gene_ids.size(), " genes has a token in ",
                      escaped(dictionaries.token_file), " (", dictionaries.tokens.size(),
                      " tokens); the file names genes such as \"",
                      gene_ids.empty() ? std::string() : escaped(gene_ids[0], 40),
                      "\", wanted Ensembl ids ", "such as \"",
                      escaped(dictionaries.tokens.token(dictionaries.tokens.size() - 1), 40), "\""),
                  "E-GENE-NONE");
  error.set_hint(
      "--gene-key names the column of var with Ensembl ids (without version numbers, "
      "\"ensembl_id\" "
      "as published); symbols need the mapping dictionary");
  error.set_where(file_);
  throw error;
}

double RankTokenizer::total_of_row(const SparseRows& rows, int64_t row,
                                   const CellTotals& totals) const {
  return totals.values.empty() ? total_of(rows.values_of(row))
                               : totals.values[static_cast<size_t>(rows.first_row + row)];
}

void RankTokenizer::require_totals(const SparseRows& rows, const CellTotals& totals) const {
  for (int64_t row = 0; row < rows.rows(); ++row) {
    const double total = total_of_row(rows, row, totals);
    if (total > 0 && std::isfinite(total)) continue;
    const auto columns = rows.columns_of(row);
    const auto counts = rows.values_of(row);
    for (size_t k = 0; k < columns.size(); ++k) {
      if (slot_[static_cast<size_t>(columns[k])] < 0 || counts[k] == 0) continue;
      DataError error(cat(escaped(file_), ": cell ", rows.first_row + row,
                          " has expressed genes and a total of ", total,
                          "; wanted its number of counts, above 0"),
                      "E-CELL-TOTAL");
      error.set_hint(
          "correct the column \"n_counts\" of obs, or remove it: then the sum of the cell is used");
      error.set_where(file_);
      throw error;
    }
  }
}

void RankTokenizer::rank_row(const SparseRows& rows, int64_t row, double total,
                             RankArithmetic arithmetic, Scratch& s) const {
  const auto columns = rows.columns_of(row);
  const auto counts = rows.values_of(row);
  s.genes.clear();
  for (size_t k = 0; k < columns.size(); ++k) {
    const int32_t slot = slot_[static_cast<size_t>(columns[k])];
    if (slot >= 0 && counts[k] > 0) s.genes.push_back({counts[k], slot});
  }
  if (merged_ > 0) {
    std::stable_sort(s.genes.begin(), s.genes.end(),
                     [](const Ranked& a, const Ranked& b) { return a.slot < b.slot; });
    size_t kept = 0;
    for (size_t k = 0; k < s.genes.size(); ++k) {
      if (kept > 0 && s.genes[kept - 1].slot == s.genes[k].slot)
        s.genes[kept - 1].value += s.genes[k].value;
      else
        s.genes[kept++] = s.genes[k];
    }
    s.genes.resize(kept);
  }
  for (Ranked& gene : s.genes)
    gene.value = rank_value(gene.value, total, median_[static_cast<size_t>(gene.slot)], arithmetic);
  std::sort(s.genes.begin(), s.genes.end(), [](const Ranked& a, const Ranked& b) {
    return a.value != b.value ? a.value > b.value : a.slot < b.slot;
  });
  if (static_cast<int64_t>(s.genes.size()) > genes_at_most_)
    s.genes.resize(static_cast<size_t>(genes_at_most_));
}

void RankTokenizer::tokenise(Context& ctx, const SparseRows& rows, const CellTotals& totals,
                             std::string_view counts, TokenisedCells& out) const {
  require(rows.columns == columns(), "RankTokenizer: wanted rows of ", columns(), " columns, got ",
          rows.columns);
  const int64_t cells = rows.rows();
  require(
      totals.values.empty() || rows.first_row + cells <= static_cast<int64_t>(totals.values.size()),
      "RankTokenizer: wanted totals of ", rows.first_row + cells, " cells, got ",
      totals.values.size());
  require_expression(rows, file_, "the matrix");
  require_totals(rows, totals);
  const RankArithmetic arithmetic =
      rank_arithmetic(counts, totals.values.empty() ? counts : std::string_view(totals.type));

  // Lengths are known after ranking only: blocks of cells are ranked apart, then put together.
  const bool v2 = cls_id_ >= 0;
  std::vector<std::vector<int32_t>> blocks(
      static_cast<size_t>((cells + kRowBlock - 1) / kRowBlock));
  out.first_cell = rows.first_row;
  out.offsets.assign(static_cast<size_t>(cells) + 1, 0);
  parallel_rows(ctx, cells, [&](int64_t begin, int64_t end) {
    std::vector<int32_t>& tokens = blocks[static_cast<size_t>(begin / kRowBlock)];
    Scratch scratch;
    for (int64_t row = begin; row < end; ++row) {
      rank_row(rows, row, total_of_row(rows, row, totals), arithmetic, scratch);
      const size_t before = tokens.size();
      if (v2) tokens.push_back(cls_id_);
      for (const Ranked& gene : scratch.genes)
        tokens.push_back(token_[static_cast<size_t>(gene.slot)]);
      if (v2) tokens.push_back(eos_id_);
      out.offsets[static_cast<size_t>(row) + 1] = static_cast<int64_t>(tokens.size() - before);
    }
  });
  out.empty.clear();
  for (int64_t row = 0; row < cells; ++row)
    if (out.offsets[static_cast<size_t>(row) + 1] == (v2 ? 2 : 0))
      out.empty.push_back(rows.first_row + row);
  std::partial_sum(out.offsets.begin(), out.offsets.end(), out.offsets.begin());
  out.genes.resize(static_cast<size_t>(out.offsets.back()));
  out.values.resize(static_cast<size_t>(out.offsets.back()));
  parallel_rows(ctx, cells, [&](int64_t begin, int64_t end) {
    const std::vector<int32_t>& tokens = blocks[static_cast<size_t>(begin / kRowBlock)];
    std::copy(tokens.begin(), tokens.end(),
              out.genes.begin() + out.offsets[static_cast<size_t>(begin)]);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = out.offsets[static_cast<size_t>(row)];
      const int64_t last = out.offsets[static_cast<size_t>(row) + 1];
      for (int64_t i = first; i < last; ++i)
        out.values[static_cast<size_t>(i)] = static_cast<float>(i - first);
    }
  });
}

}  // namespace scgraft
