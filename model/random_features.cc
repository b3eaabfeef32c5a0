// SPDX-License-Identifier: Apache-2.0
#include "model/random_features.h"

#include <cmath>
#include <vector>

#include "runtime/error.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

int64_t blocks(int64_t features, int64_t head_dim) { return (features + head_dim - 1) / head_dim; }

// One reflection 1 - tau v v^T of rows k and below; v[k] is 1 and not stored.
void reflect(double tau, const double* v, int64_t k, int64_t n, int64_t first_column, double* m) {
  for (int64_t j = first_column; j < n; ++j) {
    double along = m[k * n + j];
    for (int64_t i = k + 1; i < n; ++i) along += v[i] * m[i * n + j];
    m[k * n + j] -= tau * along;
    for (int64_t i = k + 1; i < n; ++i) m[i * n + j] -= tau * along * v[i];
  }
}

// Q of the square matrix a [n, n], row-major; a is consumed.
std::vector<double> orthogonal_factor(std::vector<double>& a, int64_t n) {
  std::vector<double> v(a.size()), tau(static_cast<size_t>(n)), q(a.size());
  for (int64_t k = 0; k < n; ++k) {
    double* reflection = v.data() + k * n;
    double below = 0;
    for (int64_t i = k + 1; i < n; ++i)
      below = std::hypot(below, a[static_cast<size_t>(i * n + k)]);
    if (below == 0) continue;  // in the last column always: LAPACK leaves its sign alone
    const double alpha = a[static_cast<size_t>(k * n + k)];
    const double beta = -std::copysign(std::hypot(alpha, below), alpha);
    tau[static_cast<size_t>(k)] = (beta - alpha) / beta;
    for (int64_t i = k + 1; i < n; ++i)
      reflection[i] = a[static_cast<size_t>(i * n + k)] / (alpha - beta);
    reflect(tau[static_cast<size_t>(k)], reflection, k, n, k + 1, a.data());
  }
  for (int64_t k = n - 1; k >= 0; --k) {
    q[static_cast<size_t>(k * n + k)] = 1;
    reflect(tau[static_cast<size_t>(k)], v.data() + k * n, k, n, k, q.data());
  }
  return q;
}

}  // namespace

int64_t feature_draws(int64_t features, int64_t head_dim) {
  return blocks(features, head_dim) * head_dim * head_dim + features * head_dim;
}

void orthogonal_features(std::span<const double> draws, int64_t features, int64_t head_dim,
                         std::span<double> matrix) {
  require(features > 0 && head_dim > 0 && std::ssize(draws) == feature_draws(features, head_dim) &&
              std::ssize(matrix) == features * head_dim,
          "random features [", features, ", ", head_dim, "] from ", draws.size(),
          " draws, into a matrix of ", matrix.size());
  const int64_t d = head_dim, area = d * d;
  const double* rows = draws.data() + blocks(features, d) * area;
  std::vector<double> block(static_cast<size_t>(area)), q;
  for (int64_t j = 0; j < features; ++j) {
    if (j % d == 0) {
      const double* from = draws.data() + j / d * area;
      block.assign(from, from + area);
      q = orthogonal_factor(block, d);
    }
    double norm = 0;
    for (int64_t i = 0; i < d; ++i) norm = std::hypot(norm, rows[j * d + i]);
    for (int64_t i = 0; i < d; ++i)
      matrix[static_cast<size_t>(j * d + i)] = norm * q[static_cast<size_t>(i * d + j % d)];
  }
}

void draw_features(uint64_t seed, uint32_t draw, uint32_t layer, TensorView matrix) {
  const int64_t features = matrix.dim(0), head_dim = matrix.dim(1);
  RandomStream random(seed, RandomUse::features, draw, layer);
  std::vector<double> draws(static_cast<size_t>(feature_draws(features, head_dim)));
  for (double& x : draws) x = random.normal();
  std::vector<double> drawn(static_cast<size_t>(matrix.numel()));
  orthogonal_features(draws, features, head_dim, drawn);
  visit_real(matrix.dtype(), [&]<class T>(Type<T>) {
    for (size_t i = 0; i < drawn.size(); ++i) matrix.as<T>()[i] = static_cast<T>(drawn[i]);
  });
}

}  // namespace scgraft
