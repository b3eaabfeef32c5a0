// SPDX-License-Identifier: Apache-2.0
#include "io/genes.h"

#include <algorithm>

#include "io/h5ad_facts.h"
#include "io/text.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

constexpr double kLowMatch = 0.6;
constexpr size_t kUnmatchedShown = 20;
constexpr int64_t kVocabularyExamples = 2000;

bool is_special(std::string_view name) { return name.starts_with('<') && name.ends_with('>'); }

bool is_text(ColumnKind kind) {
  return kind == ColumnKind::categorical || kind == ColumnKind::string;
}

Strings names_in(const H5ad& file, const Frame& var, const std::string& gene_key) {
  if (gene_key.empty()) return var.index();
  const Column column = var.read(gene_key);
  if (!is_text(var.info(gene_key).kind)) {
    DataError error(
        cat(escaped(file.path()), ": column \"", escaped(gene_key), "\" of the gene table holds ",
            name_of(var.info(gene_key).kind), " values, wanted gene names"),
        "E-GENE-KEY");
    error.set_hint("--gene-key takes a column of text; without it the index is used");
    error.set_where(file.path(), gene_key);
    throw error;
  }
  Strings names;
  names.reserve(static_cast<size_t>(column.size()));
  for (int64_t row = 0; row < column.size(); ++row) names.push_back(column.text(row));
  return names;
}

int64_t count_known(const Strings& names, const Vocabulary& vocabulary) {
  return std::count_if(names.begin(), names.end(), [&](const std::string& name) {
    return !is_special(name) && vocabulary.contains(name);
  });
}

// The place of the gene table that names the most known genes, and how many; the index is "".
struct BestKey {
  std::string gene_key;
  int64_t known = 0;
};
BestKey best_key(const H5ad& file, const Frame& var, const Vocabulary& vocabulary) {
  BestKey best{"", count_known(var.index(), vocabulary)};
  for (const std::string& column : var.columns()) {
    if (!is_text(var.info(column).kind)) continue;
    const int64_t known = count_known(names_in(file, var, column), vocabulary);
    if (known > best.known) best = {column, known};
  }
  return best;
}

std::string examples(const Strings& names) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(3, names.size()); ++i)
    text += cat(i == 0 ? "" : ", ", escaped(names[i], 40));
  return text;
}

// What the model calls its genes, e.g. "symbol ids such as A1BG, A1CF, A2M".
std::string describe(const Vocabulary& vocabulary) {
  Strings names;
  for (int64_t id = 0; id < std::min(vocabulary.size(), kVocabularyExamples); ++id)
    if (!is_special(vocabulary.token(id))) names.push_back(vocabulary.token(id));
  return cat(name_of(gene_id_kind(names)), " ids such as ", examples(names));
}

std::string hint_for(const std::string& used, const BestKey& best) {
  if (best.known == 0 || best.gene_key == used) return {};
  const std::string fits = cat(" (", best.known, " genes are known there)");
  if (best.gene_key.empty()) return "leave --gene-key away: the index of var fits better" + fits;
  return cat("pass --gene-key ", escaped(best.gene_key), fits);
}

[[noreturn]] void refuse(const H5ad& file, const std::string& gene_key, const Strings& names,
                         const Frame& var, const Vocabulary& vocabulary) {
  DataError error(
      cat(escaped(file.path()), ": 0 of ", names.size(),
          " genes are known to the model; the file "
          "has ",
          name_of(gene_id_kind(names)), " ids such as ", examples(names), " in ",
          gene_key.empty() ? "the index of var" : cat("var column \"", escaped(gene_key), "\""),
          ", the model's ", vocabulary.size(), " tokens are ", describe(vocabulary)),
      "E-GENE-NONE");
  std::string hint = hint_for(gene_key, best_key(file, var, vocabulary));
  if (hint.empty())
    hint =
        "no column of var names genes as the model does: add one (for example the symbols of "
        "these ids) and pass it with --gene-key";
  error.set_hint(hint);
  error.set_where(file.path(), gene_key);
  throw error;
}

}  // namespace

GeneMatch match_genes(const H5ad& file, const MatrixSlot& slot, const std::string& gene_key,
                      const Vocabulary& vocabulary) {
  const Frame& var = file.var_of(slot);
  const Strings names = names_in(file, var, gene_key);
  GeneMatch match;
  match.gene_key = gene_key;
  match.token.assign(names.size(), -1);
  std::vector<uint8_t> taken(static_cast<size_t>(vocabulary.size()), 0);
  for (size_t column = 0; column < names.size(); ++column) {
    const auto id = is_special(names[column]) ? std::nullopt : vocabulary.find(names[column]);
    if (!id) {
      if (match.unmatched.size() < kUnmatchedShown) match.unmatched.push_back(names[column]);
    } else if (taken[static_cast<size_t>(*id)] != 0) {
      ++match.duplicates;
    } else {
      taken[static_cast<size_t>(*id)] = 1;
      match.token[column] = *id;
      ++match.matched;
    }
  }
  if (match.matched == 0) refuse(file, gene_key, names, var, vocabulary);
  if (match.share() < kLowMatch) {
    const std::string hint = hint_for(gene_key, best_key(file, var, vocabulary));
    log_warning("W-GENE-LOW-MATCH", "only ", match.matched + match.duplicates, " of ",
                match.columns(), " genes of ", escaped(file.path()),
                " are known to the model; the rest is not used. First unknown: ",
                examples(match.unmatched), hint.empty() ? "" : ". Try: ", hint);
  }
  return match;
}

}  // namespace scgraft
