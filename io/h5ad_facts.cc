// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_facts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "io/h5ad_rows.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr int64_t kEnoughNonzeros = 1'000'000;
constexpr double kAgree = 1e-2;
// log1p of a count above 4e8: no cell holds so many molecules.
constexpr double kLargestLog1p = 20;

// The common value of positive numbers, where at least two agree within kAgree.
std::optional<double> common_value(std::vector<double> sums) {
  std::erase_if(sums, [](double sum) { return !(sum > 0); });
  if (sums.size() < 2) return std::nullopt;
  const auto [low, high] = std::minmax_element(sums.begin(), sums.end());
  if (!(*high - *low <= kAgree * *high)) return std::nullopt;
  std::nth_element(sums.begin(), sums.begin() + static_cast<int64_t>(sums.size() / 2), sums.end());
  return sums[sums.size() / 2];
}

std::string plain_number(double value) {
  if (value == std::nearbyint(value) && std::abs(value) < 1e15)
    return cat(static_cast<int64_t>(value));
  return cat(std::nearbyint(value * 1000) / 1000);
}

std::string describe(const ValueFacts& facts) {
  const std::string seen = cat(facts.nonzeros, " non-zeros looked at");
  switch (facts.kind) {
    case ValueKind::counts:
      return cat("counts (", seen, ", all whole numbers)");
    case ValueKind::log1p:
      return cat("log1p-normalised values (", seen, ", largest ", plain_number(facts.max),
                 facts.target_sum
                     ? cat(", cells normalised to ", plain_number(std::round(*facts.target_sum)))
                     : std::string(),
                 ")");
    case ValueKind::scaled:
      return cat("scaled values (", seen, ", smallest ", plain_number(facts.min), ")");
    case ValueKind::other:
      return cat("neither counts nor log1p values (", seen, ", ", plain_number(facts.min), " to ",
                 plain_number(facts.max), ")");
    case ValueKind::none:
      return "nothing that can be read";
  }
  return {};
}

struct Candidate {
  const MatrixSlot* slot;
  ValueFacts facts;
};

[[noreturn]] void refuse_scaled(const H5ad& file, const std::vector<Candidate>& looked_at) {
  std::string found;
  for (const Candidate& candidate : looked_at)
    found += cat(found.empty() ? "" : "; ", escaped(candidate.slot->path), ": ",
                 describe(candidate.facts));
  DataError error(cat(escaped(file.path()),
                      ": wanted counts or log1p-normalised values of every cell, found ", found),
                  "E-VALUES-SCALED");
  error.set_hint(
      "scaling cannot be undone: save the counts in layers/counts or raw before sc.pp.scale, and "
      "use that file");
  error.set_where(file.path(), looked_at.front().slot->path);
  throw error;
}

// Slots that hold something, in the order in which one is preferred for values of a kind.
std::vector<Candidate*> in_order(std::vector<Candidate>& all, bool counts) {
  const auto place = [&](const Candidate* candidate) {
    const std::string& path = candidate->slot->path;
    if (path == "X") return 0;
    if (candidate->slot->is_raw()) return counts ? 3 : 1;
    if (path == "layers/counts") return counts ? 1 : 2;
    return counts ? 2 : 3;
  };
  std::vector<Candidate*> order;
  for (Candidate& candidate : all) order.push_back(&candidate);
  std::stable_sort(order.begin(), order.end(),
                   [&](const Candidate* a, const Candidate* b) { return place(a) < place(b); });
  return order;
}

SlotChoice choice_of(const Candidate& chosen, const std::vector<Candidate*>& looked_at) {
  std::string reason;
  for (const Candidate* other : looked_at) {
    if (other == &chosen || other->facts.kind == ValueKind::none) continue;
    if (reason.empty() && other->facts.kind != chosen.facts.kind)
      reason =
          cat(escaped(other->slot->path), " holds ", name_of(other->facts.kind), " values, so ");
  }
  return {chosen.slot->path, chosen.facts,
          cat(reason, escaped(chosen.slot->path), " is used: ", describe(chosen.facts))};
}

SlotChoice choose_automatically(const H5ad& file) {
  std::vector<Candidate> all;
  for (const MatrixSlot& slot : file.slots())
    if (slot.format != MatrixFormat::none) all.push_back({&slot, {}});
  std::vector<Candidate*> looked_at;
  for (Candidate* candidate : in_order(all, true)) {
    candidate->facts = value_facts(file, *candidate->slot);
    looked_at.push_back(candidate);
    if (candidate->facts.kind == ValueKind::counts) return choice_of(*candidate, looked_at);
  }
  for (const ValueKind kind : {ValueKind::log1p, ValueKind::other})
    for (const Candidate* candidate : in_order(all, false))
      if (candidate->facts.kind == kind && candidate->facts.min >= 0)
        return choice_of(*candidate, looked_at);
  if (!all.empty()) refuse_scaled(file, all);
  DataError error(cat(escaped(file.path()),
                      ": wanted an expression matrix in X, raw or a layer, "
                      "found none that can be read"),
                  "E-VALUES-NONE");
  error.set_hint("scgraft inspect FILE lists what the file holds");
  error.set_where(file.path(), "X");
  throw error;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// ENS, letters of the species, G, eleven digits, perhaps a version.
bool is_ensembl(std::string_view name) {
  if (!name.starts_with("ENS")) return false;
  size_t end = name.size();
  const size_t dot = name.find('.');
  if (dot != std::string_view::npos) {
    if (dot + 1 == name.size() ||
        !std::all_of(name.begin() + static_cast<int64_t>(dot) + 1, name.end(), is_digit))
      return false;
    end = dot;
  }
  if (end < 15) return false;
  const std::string_view digits = name.substr(end - 11, 11);
  const std::string_view letters = name.substr(3, end - 14);
  return std::all_of(digits.begin(), digits.end(), is_digit) && letters.ends_with('G') &&
         std::all_of(letters.begin(), letters.end(), is_letter);
}

bool is_symbol(std::string_view name) {
  if (name.size() > 32 || name.empty() || name.starts_with("ENS")) return false;
  if (name.ends_with("_at") || !std::any_of(name.begin(), name.end(), is_letter)) return false;
  if (!is_letter(name[0])) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return is_letter(c) || is_digit(c) || c == '-' || c == '.' || c == '_' || c == '/' || c == '@';
  });
}

}  // namespace

const char* name_of(ValueKind kind) {
  switch (kind) {
    case ValueKind::counts:
      return "counts";
    case ValueKind::log1p:
      return "log1p";
    case ValueKind::scaled:
      return "scaled";
    case ValueKind::other:
      return "other";
    case ValueKind::none:
      return "none";
  }
  return "none";
}

const char* name_of(GeneIdKind kind) {
  switch (kind) {
    case GeneIdKind::symbol:
      return "symbol";
    case GeneIdKind::ensembl:
      return "ensembl";
    case GeneIdKind::other:
      return "other";
  }
  return "other";
}

ValueFacts value_facts(const H5ad& file, const MatrixSlot& slot) {
  ValueFacts facts;
  if (slot.format == MatrixFormat::none) return facts;
  RowReader reader(file, slot.path, {.chunk_bytes = int64_t{8} << 20, .chunk_rows = 1 << 13});
  bool whole = true;
  bool finite = true;
  double min = std::numeric_limits<double>::infinity();
  double max = -min;
  std::vector<double> plain_sums;
  std::vector<double> expm1_sums;
  SparseRows rows;
  while (facts.nonzeros < kEnoughNonzeros && reader.next(rows)) {
    for (int64_t row = 0; row < rows.rows(); ++row) {
      double plain = 0;
      double expm1 = 0;
      for (const float value : rows.values_of(row)) {
        if (value == 0) continue;
        ++facts.nonzeros;
        finite = finite && std::isfinite(value);
        whole = whole && value == std::nearbyint(value);
        min = std::min<double>(min, value);
        max = std::max<double>(max, value);
        plain += value;
        expm1 += std::expm1(static_cast<double>(std::min(value, 64.f)));
      }
      plain_sums.push_back(plain);
      expm1_sums.push_back(expm1);
    }
    facts.rows += rows.rows();
  }
  if (facts.nonzeros > 0) facts.min = min, facts.max = max;
  if (!finite) {
    facts.kind = ValueKind::other;
  } else if (facts.min < 0) {
    facts.kind = ValueKind::scaled;
  } else if (whole) {
    facts.kind = ValueKind::counts;
  } else if (facts.max >= kLargestLog1p || common_value(plain_sums)) {
    facts.kind = ValueKind::other;  // equal plain sums: normalised, but no logarithm was taken
  } else {
    facts.kind = ValueKind::log1p;
    facts.target_sum = common_value(expm1_sums);
  }
  return facts;
}

GeneIdKind gene_id_kind(std::span<const std::string> names) {
  const auto more_than_half = [&](bool (*is)(std::string_view)) {
    return 2 * std::count_if(names.begin(), names.end(), is) > static_cast<int64_t>(names.size());
  };
  if (more_than_half(is_ensembl)) return GeneIdKind::ensembl;
  return more_than_half(is_symbol) ? GeneIdKind::symbol : GeneIdKind::other;
}

SlotChoice choose_slot(const H5ad& file, const std::string& wanted) {
  if (wanted == "auto") return choose_automatically(file);
  const MatrixSlot& slot = file.slot(wanted);
  const Candidate chosen{&slot, value_facts(file, slot)};
  if (chosen.facts.kind == ValueKind::scaled) refuse_scaled(file, {chosen});
  if (chosen.facts.kind == ValueKind::none) {
    DataError error(
        cat(escaped(file.path()), ": ", escaped(slot.path), " holds no matrix that can be read"),
        "E-VALUES-NONE");
    error.set_hint("--layer auto takes the best matrix of the file");
    error.set_where(file.path(), slot.path);
    throw error;
  }
  return {slot.path, chosen.facts,
          cat(escaped(slot.path), " was asked for: ", describe(chosen.facts))};
}

}  // namespace scgraft
