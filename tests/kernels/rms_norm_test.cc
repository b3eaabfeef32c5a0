// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <cmath>

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr Dropout kDropout{.p = 0.2f, .site = 1024 + 16 + 3};
constexpr double kEps = 1e-5;

// Everything one forward and backward pass reads and writes.
struct Pass {
  Tensor x, branch, gamma, dy;
  Tensor y, rstd, xhat, dx, dbranch, dgamma;

  Pass(int64_t rows, int64_t dim, DType dtype, uint32_t seed = 0)
      : x(random_values({rows, dim}, dtype, seed + 1)),
        branch(random_values({rows, dim}, dtype, seed + 2)),
        gamma(random_values({dim}, sum_type(dtype), seed + 3, 0.2)),
        dy(random_values({rows, dim}, dtype, seed + 5)),
        y(poison({rows, dim}, dtype)),
        rstd(poison({rows}, sum_type(dtype))),
        xhat(poison({rows, dim}, dtype)),
        dx(poison({rows, dim}, dtype)),
        dbranch(poison({rows, dim}, dtype)),
        dgamma(Shape{dim}, sum_type(dtype), test_device()) {
    // Around 1, as trained norms are, so that xhat can be taken from y.
    std::vector<double> around_one = values_of(gamma.view());
    for (double& v : around_one) v = 1 + v / 2;
    gamma = tensor_of({dim}, sum_type(dtype), around_one);
  }

  static Tensor poison(Shape shape, DType dtype) {
    return tensor_of(shape, dtype,
                     std::vector<double>(static_cast<size_t>(shape.numel()), std::nan("")));
  }

  void forward(Context& ctx, Dropout dropout, const Packing* packing) {
    rms_norm(ctx, x.view(), branch.view(), dropout, packing, gamma.view(), kEps, y.view(),
             rstd.view(), xhat.view());
  }
  void backward(Context& ctx, Dropout dropout, const Packing* packing, bool from_y) {
    const RmsNormSaved saved{from_y ? y.view() : TensorView{}, from_y ? TensorView{} : xhat.view(),
                             rstd.view()};
    rms_norm_backward(ctx, dy.view(), saved, gamma.view(), dropout, packing, dx.view(),
                      dbranch.view(), dgamma.view());
  }
  // A copy for the definition.
  Pass as_f64() const {
    Pass other(0, 0, DType::f64);
    for (Tensor Pass::*t : {&Pass::x, &Pass::branch, &Pass::gamma, &Pass::dy, &Pass::y, &Pass::rstd,
                            &Pass::xhat, &Pass::dx, &Pass::dbranch, &Pass::dgamma})
      other.*t = in_f64(this->*t);
    return other;
  }
};

// dz is a difference of terms of the size of rstd * gamma * dy, which cancel altogether when dim is
// 1: the tolerance is relative to the largest of them instead of the largest result. A sum over
// dim is behind each term.
void expect_close_to_terms(const Pass& pass, ConstTensorView got, ConstTensorView want) {
  const auto largest = [](ConstTensorView view) {
    double most = 0;
    for (double v : values_of(view)) most = std::max(most, std::abs(v));
    return most;
  };
  const double term =
      largest(pass.rstd.view()) * largest(pass.gamma.view()) * largest(pass.dy.view());
  const double limit = tolerance(got.dtype(), got.dim(1)).rtol * term;
  const std::vector<double> have = values_of(got), expected = values_of(want);
  for (size_t i = 0; i < have.size(); ++i) ASSERT_NEAR(have[i], expected[i], limit) << i;
}

class RmsNormTest : public OpTest {};
INSTANTIATE_OP_TEST(RmsNormTest);

// z = (1, 7): mean of squares 25.  z = (-3, 3): 9.
TEST_P(RmsNormTest, NormalisesTheResidualSum) {
  const Tensor x = tensor({2, 2}, {0, 7, -1, 0});
  const Tensor branch = tensor({2, 2}, {1, 0, -2, 3});
  const Tensor gamma = tensor({2}, {2, 10});
  Tensor y = poisoned({2, 2}), rstd = poisoned({2}), xhat = poisoned({2, 2});
  rms_norm(ctx(), x.view(), branch.view(), {}, nullptr, gamma.view(), 0, y.view(), rstd.view(),
           xhat.view());
  expect_close(y.view(), {0.4, 14, -2, 10});
  expect_close(rstd.view(), {0.2, 1.0 / 3});
  expect_close(xhat.view(), {0.2, 1.4, -1, 1});
}

TEST_P(RmsNormTest, WithoutABranchEpsKeepsARowOfZerosFinite) {
  const Tensor x = tensor({2, 4}, {0, 0, 0, 0, 1, 1, -1, -1});
  const Tensor gamma = tensor({4}, {1, 1, 1, 2});
  Tensor y = poisoned({2, 4}), rstd = poisoned({2});
  // mean of squares 1 and eps 3: rstd = 1 / 2
  rms_norm(ctx(), x.view(), {}, {}, nullptr, gamma.view(), 3, y.view(), rstd.view(), {});
  expect_close(y.view(), {0, 0, 0, 0, 0.5, 0.5, -0.5, -1});
  expect_close(rstd.view(), {1 / std::sqrt(3.0), 0.5});
}

// The mean stays: a row of equal numbers is its sign.
TEST_P(RmsNormTest, TheMeanIsNotSubtracted) {
  const Tensor x = tensor({1, 4}, {-5, -5, -5, -5});
  const Tensor gamma = tensor({4}, {1, 1, 1, 1});
  Tensor y = poisoned({1, 4});
  rms_norm(ctx(), x.view(), {}, {}, nullptr, gamma.view(), 0, y.view(), {}, {});
  expect_close(y.view(), {-1, -1, -1, -1});
}

// xhat = (1, -1, 1, -1), g = gamma * dy = (4, 0, 0, 0): mean(g xhat) = 1, so g - xhat = (3, 1, -1,
// 1).
TEST_P(RmsNormTest, BackwardByHand) {
  const Tensor xhat = tensor({1, 4}, {1, -1, 1, -1});
  const Tensor rstd = tensor({1}, {0.5});
  const Tensor gamma = tensor({4}, {2, 3, 1, 1});
  const Tensor dy = tensor({1, 4}, {2, 0, 0, 0});
  Tensor dx = poisoned({1, 4});
  Tensor dgamma = tensor({4}, {1, 1, 1, 1});
  rms_norm_backward(ctx(), dy.view(), {{}, xhat.view(), rstd.view()}, gamma.view(), {}, nullptr,
                    dx.view(), {}, dgamma.view());
  expect_close(dx.view(), {1.5, 0.5, -0.5, 0.5});
  expect_close(dgamma.view(), {3, 1, 1, 1});  // accumulated: + dy * xhat
  const Tensor y = tensor({1, 4}, {2, -3, 1, -1});
  rms_norm_backward(ctx(), dy.view(), {y.view(), {}, rstd.view()}, gamma.view(), {}, nullptr,
                    dx.view(), {}, {});
  expect_close(dx.view(), {1.5, 0.5, -0.5, 0.5});
}

TEST_P(RmsNormTest, AwkwardSizesAgreeWithTheF64Definition) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    Context definition = reference_context();
    for (const auto& [rows, dim] : awkward_shapes())
      for (bool from_y : {false, true}) {
        SCOPED_TRACE(cat("rows ", rows, ", dim ", dim, from_y ? ", from y" : ", from xhat"));
        const PackedCells cells = awkward_cells(rows);
        const Packing packing = cells.packing();
        Pass got(rows, dim, dtype());
        Pass want = got.as_f64();
        got.forward(ctx(), kDropout, &packing);
        want.forward(definition, kDropout, &packing);
        expect_close(got.y.view(), values_of(want.y.view()), dim);
        // x and the branch may cancel, which shows in rstd when the row has nothing else.
        expect_close(got.rstd.view(), values_of(want.rstd.view()), std::max<int64_t>(dim, 32));
        expect_close(got.xhat.view(), values_of(want.xhat.view()), dim);
        // The backward pass alone, from the same saved values.
        want.y = in_f64(got.y);
        want.rstd = in_f64(got.rstd);
        want.xhat = in_f64(got.xhat);
        got.backward(ctx(), kDropout, &packing, from_y);
        want.backward(definition, kDropout, &packing, from_y);
        expect_close_to_terms(got, got.dx.view(), want.dx.view());
        expect_close_to_terms(got, got.dbranch.view(), want.dbranch.view());
        expect_close(got.dgamma.view(), values_of(want.dgamma.view()), rows);
      }
  }
}

// Dropping inside the operation is the same as handing it a branch that was masked before, and the
// gradient of the branch carries the mask of the forward pass.
TEST_P(RmsNormTest, DropoutMasksTheBranchAlikeInBothDirections) {
  const PackedCells cells = awkward_cells(140);
  const Packing packing = cells.packing();
  ctx().random() = {99, 3};
  Pass dropped(140, 521, dtype());
  Pass masked(140, 521, dtype());
  const std::vector<double> mask = hidden_mask(ctx(), kDropout, cells, 521);
  masked.branch = tensor({140, 521}, product(values_of(masked.branch.view()), mask));
  dropped.forward(ctx(), kDropout, &packing);
  masked.forward(ctx(), {}, nullptr);
  expect_close(dropped.y.view(), values_of(masked.y.view()), 521);

  dropped.backward(ctx(), kDropout, &packing, false);
  const std::vector<double> dz = values_of(dropped.dx.view());
  expect_close(dropped.dbranch.view(), product(dz, mask));
  const std::vector<double> dbranch = values_of(dropped.dbranch.view());
  for (size_t i = 0; i < mask.size(); ++i) ASSERT_EQ(dbranch[i] == 0, mask[i] == 0) << i;
}

TEST(RmsNorm, BackwardMatchesFiniteDifferences) {
  const PackedCells cells({2, 0, 3, 1}, {4, 5, 6, 7});
  const Packing packing = cells.packing();
  Context ctx = reference_context();
  for (Dropout dropout : {Dropout{}, kDropout})
    for (bool from_y : {false, true}) {
      Pass pass(6, 11, DType::f64);
      pass.forward(ctx, dropout, &packing);
      pass.backward(ctx, dropout, &packing, from_y);
      const auto loss = [&] {
        pass.forward(ctx, dropout, &packing);
        return dot(pass.dy.view(), pass.y.view());
      };
      expect_gradient(pass.x, loss, pass.dx.view());
      expect_gradient(pass.branch, loss, pass.dbranch.view());
      expect_gradient(pass.gamma, loss, pass.dgamma.view());
    }
}

TEST_P(RmsNormTest, ThreadsChangeNothing) {
  const PackedCells cells = awkward_cells(257);
  const Packing packing = cells.packing();
  Pass want(257, 521, dtype());
  want.forward(ctx(), kDropout, &packing);
  want.backward(ctx(), kDropout, &packing, true);
  for (int threads : {1, 3, 7}) {
    Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
    Pass got(257, 521, dtype());
    got.forward(other, kDropout, &packing);
    got.backward(other, kDropout, &packing, true);
    expect_same_bits(got.y.view(), want.y.view());
    expect_same_bits(got.dx.view(), want.dx.view());
    expect_same_bits(got.dbranch.view(), want.dbranch.view());
    expect_same_bits(got.dgamma.view(), want.dgamma.view());
    EXPECT_EQ(other.scratch().used(), 0);
  }
}

// One call over four cells, or one call per cell: the same bits, dropout included.
TEST_P(RmsNormTest, CuttingTheBatchBetweenCellsChangesNothing) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const std::vector<int32_t> lengths = {70, 1, 130, 20};
    const std::vector<int64_t> ids = {11, 3, 8, 12};
    const PackedCells all(lengths, ids);
    const Packing packing = all.packing();
    constexpr int64_t kDim = 40;
    Pass whole(all.rows(), kDim, dtype());
    whole.forward(ctx(), kDropout, &packing);
    whole.backward(ctx(), kDropout, &packing, false);

    Pass parts(all.rows(), kDim, dtype());
    for (size_t cell = 0; cell < lengths.size(); ++cell) {
      const PackedCells one({lengths[cell]}, {ids[cell]});
      const Packing own = one.packing();
      const auto cut = [&](Tensor& t) {
        return t.view().rows(all.offsets[cell], all.offsets[cell + 1]);
      };
      rms_norm(ctx(), cut(parts.x), cut(parts.branch), kDropout, &own, parts.gamma.view(), kEps,
               cut(parts.y), cut(parts.rstd), cut(parts.xhat));
      rms_norm_backward(ctx(), cut(parts.dy), {{}, cut(parts.xhat), cut(parts.rstd)},
                        parts.gamma.view(), kDropout, &own, cut(parts.dx), cut(parts.dbranch),
                        parts.dgamma.view());
    }
    expect_same_bits(parts.y.view(), whole.y.view());
    expect_same_bits(parts.dx.view(), whole.dx.view());
    expect_same_bits(parts.dbranch.view(), whole.dbranch.view());
    expect_same_bits(parts.dgamma.view(), whole.dgamma.view());
  }
}

TEST_P(RmsNormTest, OutputsMayBeInputs) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const PackedCells cells = awkward_cells(33);
    const Packing packing = cells.packing();
    Pass want(33, 33, dtype());
    want.forward(ctx(), kDropout, &packing);
    want.backward(ctx(), kDropout, &packing, true);
    const auto forward = [&](TensorView x, TensorView branch, TensorView y) {
      rms_norm(ctx(), x, branch, kDropout, &packing, want.gamma.view(), kEps, y, {}, {});
    };
    Tensor x = want.x.clone(), branch = want.branch.clone();
    forward(x.view(), branch.view(), x.view());
    expect_same_bits(x.view(), want.y.view());
    x = want.x.clone();
    forward(x.view(), branch.view(), branch.view());
    expect_same_bits(branch.view(), want.y.view());

    const RmsNormSaved saved{want.y.view(), {}, want.rstd.view()};
    Tensor dy = want.dy.clone(), dbranch = poisoned({33, 33});
    rms_norm_backward(ctx(), dy.view(), saved, want.gamma.view(), kDropout, &packing, dy.view(),
                      dbranch.view(), {});
    expect_same_bits(dy.view(), want.dx.view());
    expect_same_bits(dbranch.view(), want.dbranch.view());
  }
}

TEST_P(RmsNormTest, WhatIsNotWantedIsLeftOut) {
  const PackedCells cells = awkward_cells(33);
  const Packing packing = cells.packing();
  Pass want(33, 33, dtype());
  want.forward(ctx(), kDropout, &packing);
  want.backward(ctx(), kDropout, &packing, false);
  const RmsNormSaved saved{{}, want.xhat.view(), want.rstd.view()};
  const auto backward = [&](TensorView dx, TensorView dbranch, TensorView dgamma) {
    rms_norm_backward(ctx(), want.dy.view(), saved, want.gamma.view(), kDropout, &packing, dx,
                      dbranch, dgamma);
  };
  Tensor got = poisoned({33, 33});
  backward({}, got.view(), {});
  expect_same_bits(got.view(), want.dbranch.view());
  Tensor dgamma = zeros({33});
  backward({}, {}, dgamma.view());
  expect_same_bits(dgamma.view(), want.dgamma.view());
  // The branch gradient without dropout is dz itself.
  Tensor plain = poisoned({33, 33});
  rms_norm_backward(ctx(), want.dy.view(), saved, want.gamma.view(), {}, nullptr, {}, plain.view(),
                    {});
  expect_same_bits(plain.view(), want.dx.view());
}

TEST_P(RmsNormTest, InvertibleOnlyWhileGammaIsNotTiny) {
  const auto invertible = [&](const std::vector<double>& gamma) {
    return rms_norm_is_invertible(tensor({3}, gamma).view());
  };
  EXPECT_TRUE(invertible({1, -0x1p-10, 3e4}));
  EXPECT_FALSE(invertible({1, 0.9 * 0x1p-10, 1}));
  EXPECT_FALSE(invertible({1, 1, 0}));
  EXPECT_FALSE(invertible({std::nan(""), 1, 1}));
  EXPECT_FALSE(invertible({1, INFINITY, 1}));
}

TEST_P(RmsNormTest, ErrorsNameTheTensorAndTheShapeItShouldHave) {
  Pass p(4, 8, dtype());
  const Tensor narrow = zeros({7});
  const auto forward = [&](ConstTensorView branch, ConstTensorView gamma, double eps) {
    rms_norm(ctx(), p.x.view(), branch, {}, nullptr, gamma, eps, p.y.view(), {}, {});
  };
  expect_error("rms_norm: gamma must be [8], got [7]", [&] { forward({}, narrow.view(), kEps); });
  expect_error("rms_norm: branch must be [4, 8], got [8]",
               [&] { forward(p.gamma.view(), p.gamma.view(), kEps); });
  expect_error("rms_norm: dropout 0.2 needs the packing",
               [&] { p.forward(ctx(), kDropout, nullptr); });
  expect_error("eps must not be negative, got -1", [&] { forward({}, p.gamma.view(), -1); });
  const Tensor half(Shape{8}, DType::bf16, test_device());
  expect_error("rms_norm: gamma must be", [&] { forward({}, half.view(), kEps); });
  const auto backward = [&](const RmsNormSaved& saved, const Packing* packing) {
    rms_norm_backward(ctx(), p.dy.view(), saved, p.gamma.view(), {}, packing, p.dx.view(), {},
                      p.dgamma.view());
  };
  expect_error("rms_norm_backward: saved must hold y or xhat of the forward pass, got neither",
               [&] {
                 backward({{}, {}, p.rstd.view()}, nullptr);
               });
  const PackedCells cells({3}, {0});
  const Packing packing = cells.packing();
  expect_error("the packing must describe 4 rows", [&] {
    backward({p.y.view(), {}, p.rstd.view()}, &packing);
  });
}

}  // namespace
}  // namespace scgraft
