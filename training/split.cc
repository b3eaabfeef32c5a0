// SPDX-License-Identifier: Apache-2.0
#include "training/split.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

// Second word of the random counter, so that the parts of a seed are independent.
enum SplitDraw : uint32_t { kWithinLabel = 0, kGroupOrder = 1 };

void check_fraction(double fraction) {
  require<ConfigError>(fraction > 0 && fraction < 1,
                       "val_fraction must be above 0 and below 1, got ", fraction,
                       ". 0.1 keeps a tenth of the cells for validation");
}

[[noreturn]] void fail(const std::string& text, const std::string& hint) {
  DataError error(text, "E-SPLIT");
  error.set_hint(hint);
  throw error;
}

void shuffle(std::vector<int64_t>& values, RandomStream random) {
  for (size_t i = values.size(); i > 1; --i)
    std::swap(values[i - 1], values[static_cast<size_t>(random.below(i))]);
}

// Rows of each label, in an order drawn from the seed. Keyed by label: rows of one label do not
// depend on the others.
std::map<int32_t, std::vector<int64_t>> shuffled_by_label(std::span<const int32_t> labels,
                                                          uint64_t seed) {
  std::map<int32_t, std::vector<int64_t>> rows;
  for (size_t i = 0; i < labels.size(); ++i)
    if (labels[i] >= 0) rows[labels[i]].push_back(static_cast<int64_t>(i));
  for (auto& [label, list] : rows)
    shuffle(list, RandomStream(seed, RandomUse::split, kWithinLabel, static_cast<uint32_t>(label)));
  return rows;
}

// Validation cells of each label: floor(f n_c), then one more for the largest remainders until the
// total is reached; never all cells of a label.
std::vector<int64_t> validation_counts(const std::vector<int64_t>& sizes, double fraction) {
  std::vector<int64_t> counts(sizes.size());
  std::vector<std::pair<double, size_t>> remainders;
  int64_t cells = 0;
  int64_t taken = 0;
  for (size_t c = 0; c < sizes.size(); ++c) {
    const double share = fraction * static_cast<double>(sizes[c]);
    counts[c] = std::min(static_cast<int64_t>(std::floor(share)), sizes[c] - 1);
    cells += sizes[c];
    taken += counts[c];
    if (counts[c] < sizes[c] - 1)
      remainders.emplace_back(static_cast<double>(counts[c]) - share, c);
  }
  // Ascending in -(remainder): the pair's second member breaks ties by label.
  std::sort(remainders.begin(), remainders.end());
  const int64_t wanted = std::max<int64_t>(1, std::llround(fraction * static_cast<double>(cells)));
  for (size_t i = 0; i < remainders.size() && taken < wanted; ++i, ++taken)
    ++counts[remainders[i].second];
  return counts;
}

void sort_sides(Split& split) {
  std::sort(split.train.begin(), split.train.end());
  std::sort(split.validation.begin(), split.validation.end());
}

// Cells of one group, by dense label number.
struct Group {
  int64_t cells = 0;
  std::map<size_t, int64_t> per_label;
};

// How far a validation part is from the wanted share, in total and for each label.
class GroupChoice {
 public:
  GroupChoice(std::vector<int64_t> label_sizes, double fraction)
      : sizes_(std::move(label_sizes)), taken_(sizes_.size(), 0), fraction_(fraction) {
    cells_ = std::accumulate(sizes_.begin(), sizes_.end(), int64_t{0});
  }
  // Change of the cost when the group joins the validation part.
  double change(const Group& group) const {
    double labels = 0;
    for (const auto& [label, n] : group.per_label)
      labels += term(taken_[label] + n, sizes_[label]) - term(taken_[label], sizes_[label]);
    return term(taken_cells_ + group.cells, cells_) - term(taken_cells_, cells_) +
           labels / static_cast<double>(sizes_.size());
  }
  void take(const Group& group) {
    for (const auto& [label, n] : group.per_label) taken_[label] += n;
    taken_cells_ += group.cells;
  }

 private:
  double term(int64_t part, int64_t whole) const {
    const double d = static_cast<double>(part) / static_cast<double>(whole) - fraction_;
    return d * d;
  }
  std::vector<int64_t> sizes_;
  std::vector<int64_t> taken_;
  int64_t cells_ = 0;
  int64_t taken_cells_ = 0;
  double fraction_;
};

// Which groups go to validation.
std::vector<bool> choose_groups(const std::vector<Group>& groups, GroupChoice choice,
                                uint64_t seed) {
  std::vector<int64_t> order(groups.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  shuffle(order, RandomStream(seed, RandomUse::split, kGroupOrder));
  std::vector<bool> chosen(groups.size(), false);
  size_t n_chosen = 0;
  for (bool improved = true; improved;) {
    improved = false;
    for (const int64_t g : order) {
      const auto i = static_cast<size_t>(g);
      if (chosen[i] || n_chosen + 1 == groups.size() || choice.change(groups[i]) >= 0) continue;
      choice.take(groups[i]);
      chosen[i] = true;
      ++n_chosen;
      improved = true;
    }
  }
  if (n_chosen == 0) {  // every group is too large: the one that overshoots least
    const auto best = std::min_element(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return choice.change(groups[static_cast<size_t>(a)]) <
             choice.change(groups[static_cast<size_t>(b)]);
    });
    chosen[static_cast<size_t>(*best)] = true;
  }
  return chosen;
}

}  // namespace

Split stratified_split(std::span<const int32_t> labels, double validation_fraction, uint64_t seed) {
  check_fraction(validation_fraction);
  const auto rows = shuffled_by_label(labels, seed);
  std::vector<int64_t> sizes;
  for (const auto& [label, list] : rows) sizes.push_back(static_cast<int64_t>(list.size()));
  if (std::none_of(sizes.begin(), sizes.end(), [](int64_t n) { return n > 1; }))
    fail(cat("a split needs a label with at least two cells, the ", labels.size(), " cells have ",
             rows.size(), " labels with at most one cell each"),
         "check label_key, or give a validation file of its own (data.val)");
  const std::vector<int64_t> counts = validation_counts(sizes, validation_fraction);
  Split split;
  size_t c = 0;
  for (const auto& [label, list] : rows) {
    const auto middle = list.begin() + counts[c++];
    split.validation.insert(split.validation.end(), list.begin(), middle);
    split.train.insert(split.train.end(), middle, list.end());
  }
  sort_sides(split);
  return split;
}

Split group_split(std::span<const int32_t> labels, std::span<const int32_t> groups,
                  double validation_fraction, uint64_t seed) {
  check_fraction(validation_fraction);
  require(labels.size() == groups.size(), "group_split: ", labels.size(), " labels, ",
          groups.size(), " groups");
  std::map<int32_t, size_t> label_number;
  std::map<int32_t, size_t> group_number;
  std::vector<int64_t> label_sizes;
  std::vector<Group> members;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0) continue;
    const size_t label = label_number.emplace(labels[i], label_number.size()).first->second;
    const size_t group = group_number.emplace(groups[i], group_number.size()).first->second;
    label_sizes.resize(label_number.size());
    members.resize(group_number.size());
    ++label_sizes[label];
    ++members[group].cells;
    ++members[group].per_label[label];
  }
  if (members.size() < 2)
    fail(
        cat("a split by group needs at least two groups, the labelled cells have ", members.size()),
        "leave split_by out, name another column, or give a validation file (data.val)");
  const std::vector<bool> chosen =
      choose_groups(members, GroupChoice(label_sizes, validation_fraction), seed);
  Split split;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0) continue;
    auto& side = chosen[group_number.at(groups[i])] ? split.validation : split.train;
    side.push_back(static_cast<int64_t>(i));
  }
  return split;
}

std::vector<Split> stratified_folds(std::span<const int32_t> labels, int folds, uint64_t seed) {
  require<ConfigError>(folds >= 2, "cross-validation needs at least 2 folds, got ", folds,
                       ". 5 is usual");
  std::vector<Split> splits(static_cast<size_t>(folds));
  size_t next = 0;
  for (const auto& [label, list] : shuffled_by_label(labels, seed)) {
    for (const int64_t row : list) {
      const size_t home = list.size() > 1 ? next++ % splits.size() : splits.size();
      for (size_t f = 0; f < splits.size(); ++f)
        (f == home ? splits[f].validation : splits[f].train).push_back(row);
    }
  }
  if (next < splits.size())
    fail(
        cat(folds, " folds need at least ", folds, " cells of labels that occur twice, got ", next),
        "use fewer folds");
  for (Split& split : splits) sort_sides(split);
  return splits;
}

}  // namespace scgraft
