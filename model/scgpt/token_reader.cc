// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/token_reader.h"

#include <algorithm>
#include <numeric>
#include <unordered_set>
#include <utility>

#include "io/text.h"
#include "model/highly_variable.h"
#include "model/parallel_rows.h"
#include "model/preprocess.h"
#include "model/scgpt/binning.h"
#include "model/scgpt/tokenizer.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

const Preparation& validated(const Preparation& preparation) {
  preparation.validate();
  return preparation;
}

}  // namespace

// Working memory of one cell.
struct TokenReader::Scratch {
  std::vector<float> expression;  // over known genes
  std::vector<int32_t> genes;     // of those that become tokens
  std::vector<float> values;
  std::vector<double> uniforms;
  std::vector<int32_t> kept;
  BinningScratch binning;
};

TokenReader::TokenReader(Context& ctx, const H5ad& file, const Vocabulary& vocabulary,
                         int32_t cls_id, const Preparation& preparation, RowReaderOptions options)
    : ctx_(ctx),
      file_(file.path()),
      cls_id_(cls_id),
      preparation_(validated(preparation)),
      slot_(choose_slot(file, preparation.layer)),
      match_(match_genes(file, file.slot(slot_.slot), preparation.gene_key, vocabulary)),
      reader_(file, slot_.slot, options),
      use_(match_.token) {
  if (!preparation_.genes.empty())
    restrict_genes(vocabulary);
  else if (preparation_.hvg != "none")
    choose_variable_genes();
  for (const int32_t token : use_)
    if (token >= 0) genes_.push_back(vocabulary.token(token));
}

void TokenReader::restrict_genes(const Vocabulary& vocabulary) {
  std::vector<uint8_t> wanted(static_cast<size_t>(vocabulary.size()), 0);
  for (const std::string& gene : preparation_.genes) {
    const auto id = vocabulary.find(gene);
    if (!id) {
      ModelError error(
          cat("the preparation uses the gene \"", escaped(gene),
              "\", which the model's vocabulary of ", vocabulary.size(), " tokens does not have"),
          "E-PREPARE");
      error.set_hint("use the base model that the adapter was trained on");
      throw error;
    }
    wanted[static_cast<size_t>(*id)] = 1;
  }
  for (int32_t& token : use_)
    if (token >= 0 && wanted[static_cast<size_t>(token)] == 0) token = -1;
}

void TokenReader::choose_variable_genes() {
  HvgOptions options{.flavour = parse_hvg_flavour(preparation_.hvg),
                     .count = preparation_.hvg_count};
  if (options.flavour == HvgFlavour::seurat_v3 && slot_.facts.kind == ValueKind::log1p) {
    ConfigError error(cat("seurat_v3 finds variable genes on counts; ", escaped(file_),
                          " has log1p-normalised values only"),
                      "E-HVG-VALUES");
    error.set_hint("pass -s data.hvg=cell_ranger");
    throw error;
  }
  if (options.flavour == HvgFlavour::cell_ranger && takes_logarithm())
    options.target_sum = preparation_.target_sum;
  std::vector<uint8_t> known(use_.size());
  for (size_t column = 0; column < use_.size(); ++column) known[column] = use_[column] >= 0;
  std::vector<int32_t> chosen(use_.size(), -1);
  for (const int32_t column : highly_variable(reader_, known, options, file_))
    chosen[static_cast<size_t>(column)] = use_[static_cast<size_t>(column)];
  use_ = std::move(chosen);
}

Preparation TokenReader::preparation() const {
  Preparation p = preparation_;
  if (p.hvg != "none") p.genes = genes_;
  return p;
}

bool TokenReader::next(TokenisedCells& out, SparseRows* normalised) {
  if (!reader_.next(rows_)) return false;
  require_expression(rows_, file_, slot_.slot);
  out.first_cell = rows_.first_row;
  const int64_t cells = rows_.rows();
  out.offsets.assign(static_cast<size_t>(cells) + 1, 0);
  parallel_rows(ctx_, cells, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      out.offsets[static_cast<size_t>(row) + 1] =
          1 + std::min(count_expressed(row), preparation_.max_length - 1);
  });
  out.empty.clear();
  for (int64_t row = 0; row < cells; ++row)
    if (out.offsets[static_cast<size_t>(row) + 1] == 1) out.empty.push_back(rows_.first_row + row);
  std::partial_sum(out.offsets.begin(), out.offsets.end(), out.offsets.begin());
  out.genes.resize(static_cast<size_t>(out.offsets.back()));
  out.values.resize(static_cast<size_t>(out.offsets.back()));
  parallel_rows(ctx_, cells, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t row = begin; row < end; ++row) tokenise_row(row, scratch, out);
  });
  if (normalised != nullptr) {
    if (takes_logarithm()) normalise_log1p(ctx_, rows_, preparation_.target_sum);
    std::swap(*normalised, rows_);
  }
  return true;
}

int64_t TokenReader::count_expressed(int64_t row) const {
  const auto columns = rows_.columns_of(row);
  const auto values = rows_.values_of(row);
  int64_t count = 0;
  for (size_t k = 0; k < columns.size(); ++k)
    count += use_[static_cast<size_t>(columns[k])] >= 0 && values[k] > 0;
  return count;
}

void TokenReader::tokenise_row(int64_t row, Scratch& s, TokenisedCells& out) const {
  const auto columns = rows_.columns_of(row);
  const auto values = rows_.values_of(row);
  double total = 0;
  s.genes.clear();
  s.values.clear();
  for (size_t k = 0; k < columns.size(); ++k) {
    const auto column = static_cast<size_t>(columns[k]);
    if (match_.token[column] >= 0) total += values[k];
    if (use_[column] < 0 || values[k] == 0) continue;
    s.genes.push_back(use_[column]);
    s.values.push_back(values[k]);
  }
  if (takes_logarithm()) normalise_log1p(s.values, total, preparation_.target_sum);
  const uint64_t key = cell_key(s.genes, s.values);
  s.uniforms.resize(s.values.size());
  for (size_t k = 0; k < s.genes.size(); ++k)
    s.uniforms[k] = tie_break(preparation_.seed, key, s.genes[k]);
  bin_values(s.values, preparation_.n_bins, s.uniforms, s.values, s.binning);

  const auto begin = static_cast<size_t>(out.offsets[static_cast<size_t>(row)]);
  const auto length = static_cast<size_t>(out.offsets[static_cast<size_t>(row) + 1]) - begin;
  if (length < s.genes.size() + 1) {
    sample_genes(preparation_.seed, key, static_cast<int32_t>(s.genes.size()),
                 static_cast<int32_t>(length) - 1, s.kept);
    for (size_t k = 0; k < s.kept.size(); ++k) {  // kept[k] >= k: nothing is overwritten unread
      s.genes[k] = s.genes[static_cast<size_t>(s.kept[k])];
      s.values[k] = s.values[static_cast<size_t>(s.kept[k])];
    }
    s.genes.resize(length - 1);
    s.values.resize(length - 1);
  }
  tokenise(cls_id_, s.genes, s.values, {out.genes.data() + begin, length},
           {out.values.data() + begin, length});
}

}  // namespace scgraft
