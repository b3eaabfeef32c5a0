// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace scgraft {

enum class ClassWeighting { none, balanced, scpeft };

// "none", "balanced", "scpeft". Throws ConfigError naming the accepted words.
ClassWeighting parse_class_weighting(std::string_view word);

// Cells of each class; labels of -1 are not counted.
//   labels  [n]  -1 or 0 .. n_classes - 1, else ShapeError
std::vector<int64_t> class_counts(std::span<const int32_t> labels, int32_t n_classes);

// Weight of each class in the cross-entropy, from the cells n_c of the training part only.
//
//   none      1
//   balanced  n / (k n_c), k = classes that have cells, n = all cells
//   scpeft    (1 - n_c / n)^2
//
// A class without cells gets 1: nothing is trained on it, and cells of it in a validation part
// count as usual. Source: scikit-learn's "balanced"; the identification task of scPEFT.
std::vector<float> class_weights(ClassWeighting weighting, std::span<const int64_t> counts);

}  // namespace scgraft
