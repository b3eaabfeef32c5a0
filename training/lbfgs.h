// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <span>

namespace scgraft {

struct LbfgsOptions {
  int history = 10;  // pairs of steps and gradient changes kept
  int max_iterations = 500;
  double tolerance = 1e-6;  // stop when no element of the gradient is larger
};

enum class LbfgsStop {
  converged,
  iterations,   // max_iterations reached
  line_search,  // no better point was found along the last direction; x is the best point seen
};

struct LbfgsResult {
  LbfgsStop stop = LbfgsStop::converged;
  int iterations = 0;
  int evaluations = 0;
  double value = 0;
  double largest_gradient = 0;
};

// Value of a smooth function at x; writes its gradient, of the length of x.
using SmoothFunction = std::function<double(std::span<const double> x, std::span<double> gradient)>;

// Minimises a smooth function from x on, which becomes the best point found, by the limited-memory
// BFGS method with a line search for the strong Wolfe conditions (c1 = 1e-4, c2 = 0.9). Sums run
// in an order that depends on the length alone.
//
// Throws NumericalError when the value or the gradient at the start is not finite.
// Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithms 7.4, 7.5, 3.5 and 3.6.
LbfgsResult minimise_lbfgs(std::span<double> x, const SmoothFunction& function,
                           const LbfgsOptions& options = {});

}  // namespace scgraft
