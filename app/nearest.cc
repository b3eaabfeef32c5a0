// SPDX-License-Identifier: Apache-2.0
#include "app/nearest.h"

#include <algorithm>
#include <cctype>

namespace scgraft {
namespace {

std::string folded(std::string_view word) {
  std::string text;
  for (const char c : word)
    text += c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

int edit_distance(std::string_view first, std::string_view second) {
  const std::string a = folded(first.substr(0, 200));
  const std::string b = folded(second.substr(0, 200));
  std::vector<std::vector<int>> cost(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        cost[i][j] = static_cast<int>(i + j);
        continue;
      }
      int best = cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      best = std::min({best, cost[i - 1][j] + 1, cost[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        best = std::min(best, cost[i - 2][j - 2] + 1);
      cost[i][j] = best;
    }
  }
  return cost[a.size()][b.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  const int length = static_cast<int>(word.size());
  const int allowed = length < 2 ? 0 : std::clamp(length / 3, 1, 3);
  std::string best;
  int best_cost = allowed + 1;
  for (const std::string& candidate : known) {
    const int cost = edit_distance(word, candidate);
    if (cost < best_cost) {
      best = candidate;
      best_cost = cost;
    }
  }
  return best;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace scgraft
