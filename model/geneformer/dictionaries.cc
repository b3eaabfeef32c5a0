// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/dictionaries.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "io/flat_dictionary.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr int64_t kOneIn = 20;  // medians that may have no token

bool is_special(std::string_view name) { return name.starts_with('<') && name.ends_with('>'); }

// Of ASCII letters; identifiers and symbols have no others.
std::string upper_case(std::string_view text) {
  std::string upper(text);
  for (char& c : upper)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return upper;
}

[[noreturn]] void refuse_value(const std::string& file, const FlatEntry& entry,
                               const char* wanted) {
  throw_file_error(FileKind::model, file,
                   cat("the value of \"", escaped(entry.key), "\" is not ", wanted), "E-DICTIONARY",
                   "are the paths of tokens, medians and mapping in the right order?",
                   escaped(entry.key));
}

[[noreturn]] void refuse_mix(const std::string& message, const std::string& file) {
  ModelError error(message, "E-DICTIONARY-MIX");
  error.set_hint(
      "take the token, median and mapping dictionaries of one generation (30M, 95M or 104M cells), "
      "the one the model was trained with");
  error.set_where(file);
  throw error;
}

Vocabulary read_tokens(const std::string& file) {
  std::vector<std::pair<std::string, int64_t>> ids;
  for (FlatEntry& entry : read_flat_dictionary(file, FileKind::model)) {
    const auto* id = std::get_if<int64_t>(&entry.value);
    if (id == nullptr) refuse_value(file, entry, "a token (a whole number)");
    ids.emplace_back(std::move(entry.key), *id);
  }
  return Vocabulary::from_ids(ids, file);
}

double median_of(const FlatEntry& entry, const std::string& file) {
  double median = 0;
  if (const auto* real = std::get_if<double>(&entry.value)) median = *real;
  if (const auto* whole = std::get_if<int64_t>(&entry.value)) median = static_cast<double>(*whole);
  if (!(median > 0) || !std::isfinite(median)) refuse_value(file, entry, "a median (above 0)");
  return median;
}

// "a.pkl has 25424 genes, b.pkl has 20271", the file of tokens first.
std::string counts_of(const GeneDictionaries& d, int64_t genes, int64_t medians) {
  return cat(escaped(d.token_file), " has tokens for ", genes, " genes, ", escaped(d.median_file),
             " has medians of ", medians);
}

void read_medians(GeneDictionaries& d) {
  const std::vector<FlatEntry> entries = read_flat_dictionary(d.median_file, FileKind::model);
  d.medians.assign(static_cast<size_t>(d.tokens.size()), 0);
  std::string without_token;
  int64_t extra = 0;
  for (const FlatEntry& entry : entries) {
    const double median = median_of(entry, d.median_file);
    const auto id = is_special(entry.key) ? std::nullopt : d.tokens.find(entry.key);
    if (id)
      d.medians[static_cast<size_t>(*id)] = median;
    else if (++extra == 1)
      without_token = entry.key;
  }
  std::string without_median;
  int64_t genes = 0;
  int64_t missing = 0;
  for (int64_t id = 0; id < d.tokens.size(); ++id) {
    if (is_special(d.tokens.token(id))) continue;
    ++genes;
    if (d.medians[static_cast<size_t>(id)] == 0 && ++missing == 1)
      without_median = d.tokens.token(id);
  }
  const auto count = static_cast<int64_t>(entries.size());
  if (missing > 0)
    refuse_mix(cat("the dictionaries do not belong together: ", counts_of(d, genes, count), "; ",
                   missing, " tokens have no median, the first is ", escaped(without_median)),
               d.median_file);
  if (extra * kOneIn > count)
    refuse_mix(cat("the dictionaries do not belong together: ", counts_of(d, genes, count), "; ",
                   extra, " medians have no token, the first is ", escaped(without_token)),
               d.token_file);
}

void read_mapping(GeneDictionaries& d) {
  std::vector<FlatEntry> entries = read_flat_dictionary(d.mapping_file, FileKind::model);
  const size_t count = entries.size();
  for (FlatEntry& entry : entries) {
    auto* id = std::get_if<std::string>(&entry.value);
    if (id == nullptr) refuse_value(d.mapping_file, entry, "a gene (text)");
    if (!is_special(*id) && d.tokens.contains(*id))
      d.mapping.emplace(std::move(entry.key), std::move(*id));
  }
  if (d.mapping.empty())
    refuse_mix(cat("the dictionaries do not belong together: none of the ", count, " names in ",
                   escaped(d.mapping_file), " leads to one of the ", d.tokens.size(), " tokens of ",
                   escaped(d.token_file)),
               d.mapping_file);
}

}  // namespace

GeneDictionaries GeneDictionaries::open(const std::string& token_file,
                                        const std::string& median_file,
                                        const std::string& mapping_file) {
  GeneDictionaries d;
  d.token_file = token_file;
  d.median_file = median_file;
  d.mapping_file = mapping_file;
  d.tokens = read_tokens(token_file);
  const auto special = [&](const char* name) {
    if (!d.tokens.contains(name))
      throw_file_error(FileKind::model, token_file,
                       cat("none of its ", d.tokens.size(), " tokens is \"", name,
                           "\"; V1 has <pad> and <mask>, V2 has <cls> and <eos> besides"),
                       "E-VOCAB", "use the token dictionary that came with the model", name);
    return d.tokens.id(name);
  };
  d.pad_id = special("<pad>");
  special("<mask>");
  if (d.tokens.contains("<cls>") || d.tokens.contains("<eos>")) {
    d.generation = GeneformerGeneration::v2;
    d.cls_id = special("<cls>");
    d.eos_id = special("<eos>");
  }
  read_medians(d);
  if (!mapping_file.empty()) read_mapping(d);
  return d;
}

std::optional<int32_t> GeneDictionaries::find(std::string_view name) const {
  const auto token_of = [&](const std::string& id) {
    return is_special(id) ? std::nullopt : tokens.find(id);
  };
  const bool v2 = generation == GeneformerGeneration::v2;
  const std::string key = v2 ? upper_case(name) : std::string(name);
  if (!v2 || mapping.empty()) {
    const auto token = token_of(key);
    if (token || mapping.empty()) return token;
  }
  const auto entry = mapping.find(key);
  return entry == mapping.end() ? std::nullopt : token_of(entry->second);
}

void GeneDictionaries::require_model(const GeneformerConfig& config,
                                     const std::string& model) const {
  const char* name = generation == GeneformerGeneration::v1 ? "V1" : "V2";
  if (config.vocab == tokens.size() && config.pad_id == pad_id) return;
  std::string message = cat(escaped(token_file), " has ", tokens.size(), " tokens (", name, "), ");
  if (config.vocab != tokens.size())
    message += cat("the model ", escaped(model), " has a vocab_size of ", config.vocab);
  else
    message +=
        cat("<pad> being ", pad_id, "; the model ", escaped(model), " pads with ", config.pad_id);
  ModelError error(message, "E-VOCAB-SIZE");
  error.set_hint(
      "take the dictionaries of the model's generation: 25426 tokens are V1 (30M cells), 20275 V2 "
      "(95M or 104M)");
  error.set_where(token_file);
  throw error;
}

}  // namespace scgraft
