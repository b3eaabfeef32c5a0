// SPDX-License-Identifier: Apache-2.0
#include "model/loess.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr double kMargin = 0.005;    // of the range, outside the outermost points
constexpr double kCellOfSpan = 0.2;  // points of a cell, of those in a neighbourhood
constexpr int kTerms = 3;

struct Vertex {
  double x = 0;
  double value = 0;
  double slope = 0;
};

// Splits the sorted points [low, high] (inclusive) at their median until cells are small. Equal
// points stay together: the cut moves to the nearest place where neighbours differ.
void split(std::span<const double> x, int64_t low, int64_t high, int64_t largest, double left,
           double right, std::vector<Vertex>& vertices) {
  if (high - low + 1 <= largest) return;
  // Places are counted from 1 here so that halves round as in the published method.
  const int64_t median = (low + 1 + high + 1) / 2 - 1;
  int64_t offset = 0;
  for (;; offset = offset <= 0 ? 1 - offset : -offset) {
    const int64_t at = median + offset;
    if (at >= high || at < low) return;
    if (x[static_cast<size_t>(at)] != x[static_cast<size_t>(at) + 1]) break;
  }
  const int64_t cut = median + offset;
  const double place = x[static_cast<size_t>(cut)];
  if (place == left || place == right) return;
  vertices.push_back({.x = place});
  split(x, low, cut, largest, left, place, vertices);
  split(x, cut + 1, high, largest, place, right, vertices);
}

// Least squares by rotations that make the columns orthogonal (one-sided Jacobi): what the points
// do not determine comes out 0 instead of huge.
//   columns  kTerms columns of equal length, overwritten
std::array<double, kTerms> least_squares(std::array<std::vector<double>, kTerms>& columns,
                                         const std::vector<double>& y) {
  std::array<double, kTerms> scale{};
  const auto product = [](const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  };
  for (size_t j = 0; j < kTerms; ++j) {
    const double norm = std::sqrt(product(columns[j], columns[j]));
    scale[j] = norm > 0 ? 1 / norm : 0;
    for (double& value : columns[j]) value *= scale[j];
  }
  std::array<std::array<double, kTerms>, kTerms> v{};
  for (size_t j = 0; j < kTerms; ++j) v[j][j] = 1;
  constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
  bool rotated = true;
  for (int sweep = 0; sweep < 60 && rotated; ++sweep) {
    rotated = false;
    for (size_t p = 0; p < kTerms; ++p)
      for (size_t q = p + 1; q < kTerms; ++q) {
        const double pp = product(columns[p], columns[p]);
        const double qq = product(columns[q], columns[q]);
        const double pq = product(columns[p], columns[q]);
        if (!(std::abs(pq) > 4 * kEpsilon * std::sqrt(pp * qq))) continue;
        rotated = true;
        const double zeta = (qq - pp) / (2 * pq);
        const double t = std::copysign(1 / (std::abs(zeta) + std::hypot(1, zeta)), zeta);
        const double c = 1 / std::hypot(1, t);
        const double s = c * t;
        const auto rotate = [&](double& a, double& b) {
          const double old = a;
          a = c * old - s * b;
          b = s * old + c * b;
        };
        for (size_t i = 0; i < y.size(); ++i) rotate(columns[p][i], columns[q][i]);
        for (size_t i = 0; i < kTerms; ++i) rotate(v[i][p], v[i][q]);
      }
  }
  std::array<double, kTerms> squares{};
  for (size_t j = 0; j < kTerms; ++j) squares[j] = product(columns[j], columns[j]);
  const double largest = *std::max_element(squares.begin(), squares.end());
  const double smallest = largest * (100 * kEpsilon) * (100 * kEpsilon);
  std::array<double, kTerms> result{};
  for (size_t j = 0; j < kTerms; ++j) {
    if (!(squares[j] > smallest)) continue;
    const double along = product(columns[j], y) / squares[j];
    for (size_t i = 0; i < kTerms; ++i) result[i] += v[i][j] * along;
  }
  for (size_t j = 0; j < kTerms; ++j) result[j] *= scale[j];
  return result;
}

// Fits the parabola of a vertex. x ascending.
void fit(std::span<const double> x, std::span<const double> y, size_t neighbours, Vertex& vertex) {
  const auto distance = [&](size_t i) { return std::abs(x[i] - vertex.x); };
  // The nearest points are consecutive: the window is moved while that brings it no farther away.
  size_t begin = 0;
  while (begin + neighbours < x.size() && distance(begin + neighbours) <= distance(begin)) ++begin;
  size_t end = begin + neighbours;
  const double farthest = std::max(distance(begin), distance(end - 1));
  // Points as far as the last one count like it, whichever of them the window has.
  while (begin > 0 && distance(begin - 1) <= farthest) --begin;
  while (end < x.size() && distance(end) <= farthest) ++end;
  const bool at_one_place = x[begin] == x[end - 1];
  std::array<std::vector<double>, kTerms> columns;
  std::vector<double> target;
  int places = 0;  // different x that take part
  for (size_t i = begin; i < end; ++i) {
    const double share = at_one_place ? 0 : distance(i) / farthest;
    const double weight = std::sqrt(std::pow(1 - share * share * share, 3));
    if (!(weight > 0)) continue;
    if (places == 0 || x[i] != x[i - 1]) ++places;
    double term = weight;
    for (auto& column : columns) column.push_back(term), term *= x[i] - vertex.x;
    target.push_back(weight * y[i]);
  }
  // Two places determine a line, one a constant; curvature and slope beyond that are 0.
  for (int term = places; term < kTerms; ++term)
    std::fill(columns[static_cast<size_t>(term)].begin(), columns[static_cast<size_t>(term)].end(),
              0.0);
  const auto parabola = least_squares(columns, target);
  vertex.value = parabola[0];
  vertex.slope = parabola[1];
}

double interpolate(const Vertex& a, const Vertex& b, double x) {
  const double width = b.x - a.x;
  const double t = (x - a.x) / width;
  const double u = 1 - t;
  return u * u * (1 + 2 * t) * a.value + t * t * (1 + 2 * u) * b.value +
         t * u * width * (u * a.slope - t * b.slope);
}

}  // namespace

std::vector<double> loess(std::span<const double> x, std::span<const double> y, double span) {
  require(x.size() == y.size(), "loess: wanted as many y as x, got ", y.size(), " and ", x.size());
  require<ConfigError>(span > 0 && span <= 1, "loess: span must be in (0, 1], got ", span);
  const size_t n = x.size();
  if (n == 0) return {};
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  std::vector<double> sorted_x(n);
  std::vector<double> sorted_y(n);
  for (size_t i = 0; i < n; ++i) sorted_x[i] = x[order[i]], sorted_y[i] = y[order[i]];
  const double range = sorted_x.back() - sorted_x.front();
  if (!(range > 0))
    return std::vector<double>(n,
                               std::accumulate(y.begin(), y.end(), 0.0) / static_cast<double>(n));

  const auto share = static_cast<size_t>(std::floor(static_cast<double>(n) * span + 1e-5));
  const size_t neighbours = std::clamp<size_t>(share, std::min<size_t>(n, kTerms), n);
  const auto largest = static_cast<int64_t>(static_cast<double>(n) * span * kCellOfSpan);
  std::vector<Vertex> vertices{{.x = sorted_x.front() - kMargin * range},
                               {.x = sorted_x.back() + kMargin * range}};
  split(sorted_x, 0, static_cast<int64_t>(n) - 1, std::max<int64_t>(largest, 1), vertices[0].x,
        vertices[1].x, vertices);
  std::sort(vertices.begin(), vertices.end(),
            [](const Vertex& a, const Vertex& b) { return a.x < b.x; });
  for (Vertex& vertex : vertices) fit(sorted_x, sorted_y, neighbours, vertex);

  std::vector<double> curve(n);
  size_t cell = 0;
  for (size_t i = 0; i < n; ++i) {
    while (vertices[cell + 1].x <= sorted_x[i]) ++cell;
    curve[order[i]] = interpolate(vertices[cell], vertices[cell + 1], sorted_x[i]);
  }
  return curve;
}

}  // namespace scgraft
