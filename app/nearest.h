// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace scgraft {

// Edits (insert, delete, replace, swap of neighbours) that turn one word into the other. Upper and
// lower case, '-' and '_' count as equal.
int edit_distance(std::string_view a, std::string_view b);

// The known word that a misspelt one most likely stands for: fewest edits, at most a third of its
// length (at least one, at most three; none of a single letter); the first of several. Empty when
// none is that near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// "a, b, c".
std::string joined(const std::vector<std::string>& words);

}  // namespace scgraft
