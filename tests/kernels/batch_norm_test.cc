// SPDX-License-Identifier: Apache-2.0
#include "kernels/batch_norm.h"

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class BatchNormTest : public OpTest {
 protected:
  // Parameters and statistics have this type whatever is stored.
  Tensor feature(Shape shape, const std::vector<double>& values) {
    return tensor_of(shape, sum_type(dtype()), values);
  }
  Tensor random_feature(int64_t dim, double scale = 1) {
    Tensor t = random({dim}, scale);
    return feature({dim}, values_of(t.view()));
  }
  // Positive, as variances are.
  Tensor variances(int64_t dim) {
    std::vector<double> values = values_of(random({dim}).view());
    for (double& v : values) v = 0.3 + v * v;
    return feature({dim}, values);
  }
  Tensor poisoned_feature(int64_t dim) { return poisoned({dim}, sum_type(dtype())); }
};
INSTANTIATE_OP_TEST(BatchNormTest);

// Sizes around a panel (64 rows) and a chunk of a device (16 panels).
const std::vector<int64_t> kRows = {1, 2, 3, 31, 33, 64, 65, 1024, 1025, 2100};

TEST_P(BatchNormTest, MomentsHandComputed) {
  const Tensor x = tensor({3, 2}, {1, 5, 2, 5, 6, 5});
  Tensor mean = poisoned_feature(2), var = poisoned_feature(2);
  batch_moments(ctx(), x.view(), mean.view(), var.view());
  expect_close(mean.view(), {3, 5});
  expect_close(var.view(), {14.0 / 3, 0}, 4);
}

TEST_P(BatchNormTest, HandComputed) {
  const Tensor x = tensor({2, 2}, {3, 1, -1, 2});
  const Tensor mean = feature({2}, {1, 2}), var = feature({2}, {3, 0});
  const Tensor gamma = feature({2}, {2, 1}), beta = feature({2}, {0.5, -1});
  Tensor y = poisoned({2, 2});
  batch_norm(ctx(), x.view(), {.mean = mean.view(), .var = var.view(), .eps = 1}, y.view());
  expect_close(y.view(), {1, -1, -1, 0});
  batch_norm(ctx(), x.view(),
             {.mean = mean.view(),
              .var = var.view(),
              .gamma = gamma.view(),
              .beta = beta.view(),
              .eps = 1},
             y.view());
  expect_close(y.view(), {2.5, -2, -1.5, -1});
}

TEST_P(BatchNormTest, FrozenMomentsGiveAConstantFactor) {
  const Tensor x = tensor({2, 1}, {3, -1}), dy = tensor({2, 1}, {4, 8});
  const Tensor mean = feature({1}, {1}), var = feature({1}, {3}), gamma = feature({1}, {5});
  const Tensor beta = feature({1}, {0});
  Tensor dx = poisoned({2, 1});
  Tensor dgamma = feature({1}, {100}), dbeta = feature({1}, {200});
  batch_norm_backward(ctx(), x.view(), dy.view(),
                      {.mean = mean.view(),
                       .var = var.view(),
                       .gamma = gamma.view(),
                       .beta = beta.view(),
                       .eps = 1},
                      false, dx.view(), dgamma.view(), dbeta.view());
  expect_close(dx.view(), {10, 20});
  expect_close(dgamma.view(), {100 + 4 - 8});  // xhat is 1 and -1
  expect_close(dbeta.view(), {212});
}

TEST_P(BatchNormTest, MomentsAgreeWithPlainSumsAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t rows : kRows)
      for (int64_t dim : {1, 7, 8, 33, 136}) {
        SCOPED_TRACE(cat(rows, " rows of ", dim));
        const Tensor x = random({rows, dim}, 2);
        const std::vector<double> in = values_of(x.view());
        std::vector<double> want_mean(static_cast<size_t>(dim)), want_var(want_mean);
        const auto n = static_cast<double>(rows);
        for (size_t i = 0; i < in.size(); ++i) want_mean[i % want_mean.size()] += in[i] / n;
        for (size_t i = 0; i < in.size(); ++i) {
          const double off = in[i] - want_mean[i % want_mean.size()];
          want_var[i % want_var.size()] += off * off / n;
        }
        Tensor mean = poisoned_feature(dim), var = poisoned_feature(dim);
        batch_moments(ctx(), x.view(), mean.view(), var.view());
        expect_close(mean.view(), want_mean, rows);
        expect_close(var.view(), want_var, rows);
      }
  }
}

TEST_P(BatchNormTest, AgreesWithTheF64DefinitionAtAwkwardSizes) {
  Context definition = reference_context();
  for (DType type : storage_types()) {
    store(type);
    for (int64_t rows : kRows)
      for (int64_t dim : {1, 8, 33, 136}) {
        SCOPED_TRACE(cat(type, ", ", rows, " rows of ", dim));
        const Tensor x = random({rows, dim}), dy = random({rows, dim});
        const Tensor mean = random_feature(dim, 0.2), var = variances(dim);
        const Tensor gamma = random_feature(dim), beta = random_feature(dim);
        const BatchNormMap map{.mean = mean.view(),
                               .var = var.view(),
                               .gamma = gamma.view(),
                               .beta = beta.view(),
                               .eps = 1e-3};
        const Tensor x64 = in_f64(x), dy64 = in_f64(dy), mean64 = in_f64(mean), var64 = in_f64(var);
        const Tensor gamma64 = in_f64(gamma), beta64 = in_f64(beta);
        const BatchNormMap map64{.mean = mean64.view(),
                                 .var = var64.view(),
                                 .gamma = gamma64.view(),
                                 .beta = beta64.view(),
                                 .eps = 1e-3};
        Tensor y = poisoned({rows, dim}), want({rows, dim}, DType::f64);
        batch_norm(ctx(), x.view(), map, y.view());
        batch_norm(definition, x64.view(), map64, want.view());
        expect_close(y.view(), values_of(want.view()));
        for (const bool of_batch : {false, true}) {
          Tensor dx = poisoned({rows, dim});
          Tensor dgamma = random_feature(dim), dbeta = random_feature(dim);
          Tensor want_dgamma = in_f64(dgamma), want_dbeta = in_f64(dbeta);
          batch_norm_backward(ctx(), x.view(), dy.view(), map, of_batch, dx.view(), dgamma.view(),
                              dbeta.view());
          batch_norm_backward(definition, x64.view(), dy64.view(), map64, of_batch, want.view(),
                              want_dgamma.view(), want_dbeta.view());
          expect_close(dx.view(), values_of(want.view()), 64);
          expect_close(dgamma.view(), values_of(want_dgamma.view()), rows);
          expect_close(dbeta.view(), values_of(want_dbeta.view()), rows);
        }
      }
  }
}

TEST_P(BatchNormTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  for (const bool of_batch : {false, true}) {
    Tensor x = random({70, 5}), gamma = random({5}), beta = random({5});
    const Tensor fixed_mean = random({5}), fixed_var = variances(5), dy = random({70, 5});
    const auto loss = [&] {
      Tensor mean = fixed_mean.clone(), var = fixed_var.clone(), y = poisoned({70, 5});
      if (of_batch) batch_moments(ctx(), x.view(), mean.view(), var.view());
      batch_norm(ctx(), x.view(),
                 {.mean = mean.view(),
                  .var = var.view(),
                  .gamma = gamma.view(),
                  .beta = beta.view(),
                  .eps = 0.1},
                 y.view());
      return dot(y.view(), dy.view());
    };
    Tensor mean = fixed_mean.clone(), var = fixed_var.clone();
    if (of_batch) batch_moments(ctx(), x.view(), mean.view(), var.view());
    Tensor dx = poisoned({70, 5}), dgamma = zeros({5}), dbeta = zeros({5});
    batch_norm_backward(ctx(), x.view(), dy.view(),
                        {.mean = mean.view(),
                         .var = var.view(),
                         .gamma = gamma.view(),
                         .beta = beta.view(),
                         .eps = 0.1},
                        of_batch, dx.view(), dgamma.view(), dbeta.view());
    expect_gradient(x, loss, dx.view());
    expect_gradient(gamma, loss, dgamma.view());
    expect_gradient(beta, loss, dbeta.view());
  }
}

TEST_P(BatchNormTest, InPlaceAndLeftOutGiveTheSameBits) {
  const Tensor x = random({65, 33}), dy = random({65, 33});
  Tensor mean = poisoned_feature(33), var = poisoned_feature(33);
  batch_moments(ctx(), x.view(), mean.view(), var.view());
  const BatchNormMap map{.mean = mean.view(), .var = var.view()};
  Tensor y = poisoned({65, 33}), in_place = x.clone();
  batch_norm(ctx(), x.view(), map, y.view());
  batch_norm(ctx(), in_place.view(), map, in_place.view());
  expect_same_bits(in_place.view(), y.view());

  Tensor dx = poisoned({65, 33}), dx_in_place = dy.clone();
  Tensor dgamma = feature({33}, std::vector<double>(33)), dbeta = dgamma.clone();
  batch_norm_backward(ctx(), x.view(), dy.view(), map, true, dx.view(), dgamma.view(),
                      dbeta.view());
  batch_norm_backward(ctx(), x.view(), dx_in_place.view(), map, true, dx_in_place.view(), {}, {});
  expect_same_bits(dx_in_place.view(), dx.view());
  Tensor alone = feature({33}, std::vector<double>(33));
  batch_norm_backward(ctx(), x.view(), dy.view(), map, false, {}, {}, alone.view());
  expect_same_bits(alone.view(), dbeta.view());
}

TEST_P(BatchNormTest, SameBitsForAnyThreadCount) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const int64_t rows = 1100, dim = 200;
    const Tensor x = random({rows, dim}), dy = random({rows, dim});
    Tensor mean = poisoned_feature(dim), var = poisoned_feature(dim), dx = poisoned({rows, dim});
    batch_moments(ctx(), x.view(), mean.view(), var.view());
    const BatchNormMap map{.mean = mean.view(), .var = var.view()};
    batch_norm_backward(ctx(), x.view(), dy.view(), map, true, dx.view(), {}, {});
    for (int threads : {1, 3}) {
      Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
      Tensor mean_again = poisoned_feature(dim), var_again = poisoned_feature(dim);
      Tensor dx_again = poisoned({rows, dim});
      batch_moments(other, x.view(), mean_again.view(), var_again.view());
      batch_norm_backward(other, x.view(), dy.view(), map, true, dx_again.view(), {}, {});
      expect_same_bits(mean_again.view(), mean.view());
      expect_same_bits(var_again.view(), var.view());
      expect_same_bits(dx_again.view(), dx.view());
    }
  }
}

TEST_P(BatchNormTest, UnalignedRowsGiveTheSameNumbers) {
  Tensor room = random({66 * 8 + 1}), out = poisoned({66 * 8 + 1});
  const Tensor x = room.clone();
  const ConstTensorView aligned = x.view().rows(0, 66 * 8).reshape({66, 8});
  copy(aligned, behind_first(room, {66, 8}));
  Tensor mean = poisoned_feature(8), var = poisoned_feature(8), y = poisoned({66, 8});
  Tensor mean_apart = poisoned_feature(8), var_apart = poisoned_feature(8);
  batch_moments(ctx(), aligned, mean.view(), var.view());
  batch_moments(ctx(), behind_first(room, {66, 8}), mean_apart.view(), var_apart.view());
  expect_same_bits(mean_apart.view(), mean.view());
  expect_close(var_apart.view(), values_of(var.view()), 66);
  const BatchNormMap map{.mean = mean.view(), .var = var.view()};
  batch_norm(ctx(), aligned, map, y.view());
  batch_norm(ctx(), behind_first(room, {66, 8}), map, behind_first(out, {66, 8}));
  expect_close(behind_first(out, {66, 8}), values_of(y.view()));
}

TEST_P(BatchNormTest, NoRowsHaveNoMoments) {
  const Tensor x = zeros({0, 3});
  Tensor mean = poisoned_feature(3), var = poisoned_feature(3);
  batch_moments(ctx(), x.view(), mean.view(), var.view());
  expect_close(mean.view(), {0, 0, 0});
  expect_close(var.view(), {0, 0, 0});
}

TEST_P(BatchNormTest, ErrorsNameWhatWasWanted) {
  const Tensor x = zeros({3, 4});
  Tensor y = zeros({3, 4});
  Tensor mean = feature({4}, {0, 0, 0, 0}), var = mean.clone(), three = feature({3}, {0, 0, 0});
  expect_error("batch_moments: mean must be [4], got [3]",
               [&] { batch_moments(ctx(), x.view(), three.view(), var.view()); });
  expect_error("batch_norm: var must be [4], got [3]", [&] {
    batch_norm(ctx(), x.view(), {.mean = mean.view(), .var = three.view()}, y.view());
  });
  expect_error("gamma and beta come together", [&] {
    batch_norm(ctx(), x.view(), {.mean = mean.view(), .var = var.view(), .gamma = mean.view()},
               y.view());
  });
  Tensor wide = zeros({3, 5});
  expect_error("batch_norm_backward: dy must be [3, 4], got [3, 5]", [&] {
    batch_norm_backward(ctx(), x.view(), wide.view(), {.mean = mean.view(), .var = var.view()},
                        true, y.view(), {}, {});
  });
  Tensor whole({3, 4}, DType::i32, test_device()), moments({4}, DType::i32, test_device());
  expect_error("this operation computes on f32",
               [&] { batch_moments(ctx(), whole.view(), moments.view(), moments.view()); });
}

}  // namespace
}  // namespace scgraft
