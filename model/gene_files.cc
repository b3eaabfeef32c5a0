// SPDX-License-Identifier: Apache-2.0
#include "model/gene_files.h"

#include <algorithm>
#include <filesystem>

#include "io/text.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

constexpr size_t kUnmatchedShown = 20;
constexpr double kLowMatch = 0.6;

}  // namespace

SlotChoice choose_counts(const H5ad& file, const std::string& wanted, const std::string& what_for) {
  SlotChoice choice = choose_slot(file, wanted);
  if (choice.facts.kind == ValueKind::counts) return choice;
  DataError error(cat(escaped(file.path()), ": ", what_for, " need counts; ", escaped(choice.slot),
                      " holds ", name_of(choice.facts.kind), " values"),
                  "E-VALUES-COUNTS");
  error.set_hint("--layer names the matrix with counts; scgraft inspect lists them");
  error.set_where(file.path(), choice.slot);
  throw error;
}

std::vector<std::string> gene_names_of(const H5ad& file, const MatrixSlot& slot,
                                       const std::string& gene_key) {
  const Frame& var = file.var_of(slot);
  if (gene_key.empty()) return var.index();
  const Column column = var.read(gene_key);
  const ColumnKind kind = var.info(gene_key).kind;
  if (kind != ColumnKind::categorical && kind != ColumnKind::string) {
    DataError error(cat(escaped(file.path()), ": column \"", escaped(gene_key),
                        "\" of the gene table holds ", name_of(kind), " values, wanted gene names"),
                    "E-GENE-KEY");
    error.set_hint("--gene-key takes a column of text");
    error.set_where(file.path(), gene_key);
    throw error;
  }
  std::vector<std::string> names;
  for (int64_t row = 0; row < column.size(); ++row) names.push_back(column.text(row));
  return names;
}

void finish_match(const H5ad& file, std::span<const std::string> names, GeneMatch& match) {
  match.matched = 0;
  match.unmatched.clear();
  for (size_t i = 0; i < names.size(); ++i) {
    if (match.token[i] >= 0)
      ++match.matched;
    else if (match.unmatched.size() < kUnmatchedShown)
      match.unmatched.push_back(names[i]);
  }
  if (match.share() >= kLowMatch) return;
  std::string first;
  for (size_t i = 0; i < std::min<size_t>(3, match.unmatched.size()); ++i)
    first += cat(i == 0 ? "" : ", ", escaped(match.unmatched[i], 40));
  log_warning("W-GENE-LOW-MATCH", "only ", match.matched, " of ", match.columns(), " genes of ",
              escaped(file.path()),
              " are known to the model; the rest is not used. First unknown: ", first);
}

std::string absolute_folder(const std::string& folder) {
  return folder.empty() ? folder : std::filesystem::absolute(folder).lexically_normal().string();
}

void require_same_dictionaries(const Preparation& preparation, const std::string& fingerprint,
                               const std::string& file) {
  if (preparation.dictionary_fingerprint.empty() ||
      preparation.dictionary_fingerprint == fingerprint)
    return;
  ModelError error(cat(escaped(file), ": its genes are not those that cells were prepared with"),
                   "E-PREPARE");
  error.set_hint("--dictionaries DIR names the folder with the files that training used");
  error.set_where(file);
  throw error;
}

}  // namespace scgraft
