// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <vector>

namespace scgraft {

// Smooth curve through points: local regression with polynomials of degree 2, interpolated.
//   1. Vertices: both ends of x, 0.5 % of the range outside, and medians of ever smaller cells,
//      until no cell holds more than span / 5 of the points.
//   2. At each vertex a weighted least-squares parabola through the nearest span * n points,
//      weights (1 - (distance / largest distance)^3)^3; its value and slope are kept. Where the
//      points do not determine it, a line or a constant is taken.
//   3. Between vertices the cubic with these values and slopes.
//   x, y   [n], finite, in any order
//   span   share of the points that takes part in a vertex, in (0, 1]
// Returns the curve at x, [n]. The order of points changes no more than the last bits.
// Source: Cleveland, Devlin 1988; Cleveland, Grosse 1991. Agrees with skmisc.loess 0.5.3 (default
// surface) to 1e-9, but does not fail on near-singular neighbourhoods.
std::vector<double> loess(std::span<const double> x, std::span<const double> y, double span);

}  // namespace scgraft
