// SPDX-License-Identifier: Apache-2.0
#include "training/truncated_svd.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/ordered_sum.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

constexpr int64_t kOversampling = 10;
constexpr int kPowerIterations = 5;

using Matrix = std::vector<double>;  // row-major [rows, width]

Matrix transposed(const Matrix& m, int64_t rows, int64_t columns) {
  Matrix t(m.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      t[static_cast<size_t>(c * rows + r)] = m[static_cast<size_t>(r * columns + c)];
  return t;
}

// Replaces the columns of a tall matrix M by orthonormal ones, Q R = M; returns R [width, width].
// Gram-Schmidt, each column twice, which is as good as reflections. Columns that depend on
// earlier ones become zero, so that a matrix of low rank gives zeros and not noise.
// Own loops and not Eigen's QR: its products run on threads and change with their number.
Eigen::MatrixXd orthonormalise(Matrix& m, int64_t rows, int64_t width) {
  Matrix q = transposed(m, rows, width);  // [width, rows]: columns lie together
  Eigen::MatrixXd r = Eigen::MatrixXd::Zero(width, width);
  std::vector<double> along(static_cast<size_t>(width));
  for (int64_t j = 0; j < width; ++j) {
    double* own = q.data() + j * rows;
    const double before = std::sqrt(ordered_dot(own, own, rows));
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t i = 0; i < j; ++i)
        along[static_cast<size_t>(i)] = ordered_dot(q.data() + i * rows, own, rows);
      for (int64_t i = 0; i < j; ++i) {
        const double a = along[static_cast<size_t>(i)];
        const double* other = q.data() + i * rows;
        r(i, j) += a;
        for (int64_t k = 0; k < rows; ++k) own[k] -= a * other[k];
      }
    }
    const double after = std::sqrt(ordered_dot(own, own, rows));
    const bool independent = after > 1e-12 * before;
    r(j, j) = independent ? after : 0.0;
    const double scale = independent ? 1 / after : 0.0;
    for (int64_t k = 0; k < rows; ++k) own[k] *= scale;
  }
  m = transposed(q, width, rows);
  return r;
}

Matrix random_matrix(int64_t rows, int64_t width, uint64_t seed) {
  Matrix m(static_cast<size_t>(rows * width));
  RandomStream random(seed, RandomUse::baseline);
  for (double& v : m) v = random.normal();
  return m;
}

}  // namespace

TruncatedSvd fit_truncated_svd(Context& ctx, const SparseFeatures& x, int64_t components,
                               uint64_t seed) {
  require<ConfigError>(components > 0, "truncated SVD: components must be above 0, got ",
                       components, ". 50 is the default");
  const int64_t rows = x.rows();
  const int64_t columns = x.columns;
  if (rows == 0 || columns == 0)
    throw DataError(
        cat("a baseline needs cells and genes, got ", rows, " cells and ", columns, " genes"),
        "E-BASELINE");
  const int64_t smaller = std::min(rows, columns);
  const int64_t kept = std::min(components, smaller);
  const int64_t width = std::min(components + kOversampling, smaller);

  // Q spans the rows' space: after the loop X ~ Q (X^T Q)^T.
  const SparseFeatures by_column = x.transposed();
  Matrix right = random_matrix(columns, width, seed);  // [columns, width]
  Matrix left(static_cast<size_t>(rows * width));      // [rows, width]
  for (int i = 0; i <= kPowerIterations; ++i) {
    multiply<double>(ctx, x, right, width, left);
    orthonormalise(left, rows, width);
    multiply<double>(ctx, by_column, left, width, right);
  }
  // X^T Q = P R and R = A S B^T give X ~ (Q B) S (P A)^T.
  const Eigen::MatrixXd r = orthonormalise(right, columns, width);
  const Eigen::JacobiSVD<Eigen::MatrixXd> small(r, Eigen::ComputeFullU);

  TruncatedSvd svd;
  svd.components = Tensor({columns, kept}, DType::f32);
  const auto v = svd.components.as<float, 2>();
  for (int64_t j = 0; j < kept; ++j) svd.singular_values.push_back(small.singularValues()(j));
  std::vector<double> component(static_cast<size_t>(columns));
  for (int64_t j = 0; j < kept; ++j) {
    double extreme = 0;
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < width; ++k)
        sum += right[static_cast<size_t>(c * width + k)] * small.matrixU()(k, j);
      component[static_cast<size_t>(c)] = sum;
      if (std::abs(sum) > std::abs(extreme)) extreme = sum;
    }
    for (int64_t c = 0; c < columns; ++c)
      v(c, j) = static_cast<float>(std::copysign(1.0, extreme) * component[static_cast<size_t>(c)]);
  }
  return svd;
}

Tensor TruncatedSvd::project(Context& ctx, const SparseFeatures& x) const {
  require(x.columns == columns(), "truncated SVD: trained on ", columns(),
          " columns, these features have ", x.columns);
  const int64_t width = components.dim(1);
  std::vector<double> sums(static_cast<size_t>(x.rows() * width));
  const std::span<const float> factors(components.as<float>(),
                                       static_cast<size_t>(components.numel()));
  multiply<float>(ctx, x, factors, width, sums);
  Tensor out({x.rows(), width}, DType::f32);
  std::copy(sums.begin(), sums.end(), out.as<float>());
  return out;
}

}  // namespace scgraft
