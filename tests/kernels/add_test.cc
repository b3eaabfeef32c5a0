// SPDX-License-Identifier: Apache-2.0
#include "kernels/add.h"

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class AddTest : public OpTest {};
INSTANTIATE_OP_TEST(AddTest);

TEST_P(AddTest, AddsElementByElement) {
  const Tensor a = tensor({2, 2}, {1, -2, 0.5, 1e3});
  const Tensor b = tensor({2, 2}, {0.25, 2, 0.5, -1});
  Tensor y = poisoned({2, 2});
  add(ctx(), a.view(), b.view(), y.view());
  expect_close(y.view(), {1.25, 0, 1, 999});
}

TEST_P(AddTest, AddsAMultiple) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t n : {1, 7, 33, 16385}) {
      const Tensor a = random({n}), b = random({n});
      const std::vector<double> va = values_of(a.view()), vb = values_of(b.view());
      std::vector<double> sum, alone;
      for (size_t i = 0; i < va.size(); ++i) {
        sum.push_back(va[i] - 0.5 * vb[i]);
        alone.push_back(-0.5 * vb[i]);
      }
      Tensor y = poisoned({n});
      add(ctx(), a.view(), b.view(), y.view(), -0.5);
      expect_close(y.view(), sum);
      Tensor in_place = b.clone();
      add(ctx(), {}, in_place.view(), in_place.view(), -0.5);
      expect_close(in_place.view(), alone);
    }
  }
}

TEST_P(AddTest, WritesEveryElementOfAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t n : {0, 1, 2, 3, 31, 33, 257, 16383, 16384, 16385, 40000}) {
      const Tensor a = random({n});
      const Tensor b = random({n});
      std::vector<double> want = values_of(a.view());
      const std::vector<double> other = values_of(b.view());
      for (size_t i = 0; i < want.size(); ++i) want[i] += other[i];
      Tensor y = poisoned({n});
      add(ctx(), a.view(), b.view(), y.view());
      expect_close(y.view(), want);
    }
  }
}

TEST_P(AddTest, UnalignedTensorsGetTheSameBits) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    constexpr int64_t kRows = 5, kDim = 64, kSize = kRows * kDim;
    Tensor a = random({kSize + 1}), b = random({kSize + 1});
    Tensor y = poisoned({kSize + 1}), want = poisoned({kSize});
    const Tensor a_aligned = tensor_of({kSize}, type, values_of(behind_first(a, {kSize})));
    const Tensor b_aligned = tensor_of({kSize}, type, values_of(behind_first(b, {kSize})));
    add(ctx(), a_aligned.view(), b_aligned.view(), want.view());
    add(ctx(), behind_first(a, {kSize}), behind_first(b, {kSize}), behind_first(y, {kSize}));
    expect_same_bits(behind_first(y, {kSize}), want.view());
    const Tensor index = ints({4, 1, 0, 2, 3});
    const Shape rows{kRows, kDim};
    add_rows(ctx(), a_aligned.view().reshape(rows), index.view(), want.view().reshape(rows));
    add_rows(ctx(), behind_first(a, rows), index.view(), behind_first(y, rows));
    expect_same_bits(behind_first(y, {kSize}), want.view());
  }
}

TEST_P(AddTest, OutputMayBeEitherInput) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor a = random({33, 7});
    const Tensor b = random({33, 7});
    Tensor want = poisoned({33, 7});
    add(ctx(), a.view(), b.view(), want.view());
    Tensor first = a.clone();
    add(ctx(), first.view(), b.view(), first.view());
    expect_same_bits(first.view(), want.view());
    Tensor second = b.clone();
    add(ctx(), a.view(), second.view(), second.view());
    expect_same_bits(second.view(), want.view());
    Tensor both = a.clone();
    add(ctx(), both.view(), both.view(), both.view());
    std::vector<double> twice = values_of(a.view());
    for (double& v : twice) v *= 2;
    expect_close(both.view(), twice);
  }
}

TEST_P(AddTest, AddsRowsToThoseAnIndexNames) {
  const Tensor x = tensor({2, 3}, {1, 2, 3, 10, 20, 30});
  const Tensor index = ints({3, 0});
  Tensor y = tensor({4, 3}, {0.5, 0.5, 0.5, 1, 1, 1, 2, 2, 2, 3, 3, 3});
  add_rows(ctx(), x.view(), index.view(), y.view());
  expect_close(y.view(), {10.5, 20.5, 30.5, 1, 1, 1, 2, 2, 2, 4, 5, 6});
}

TEST_P(AddTest, AddsRowsOfAwkwardSizes) {
  for (int64_t dim : {1, 2, 3, 31, 33, 257, 512})
    for (int64_t n : {0, 1, 3, 65}) {
      const Tensor x = random({n, dim});
      std::vector<int32_t> rows;
      for (int64_t i = 0; i < n; ++i) rows.push_back(static_cast<int32_t>(2 * (n - 1 - i)));
      const Tensor index = ints(rows);
      Tensor y = random({2 * n + 1, dim});
      std::vector<double> want = values_of(y.view());
      const std::vector<double> more = values_of(x.view());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t f = 0; f < dim; ++f)
          want[static_cast<size_t>(rows[static_cast<size_t>(i)] * dim + f)] +=
              more[static_cast<size_t>(i * dim + f)];
      add_rows(ctx(), x.view(), index.view(), y.view());
      expect_close(y.view(), want);
    }
}

TEST_P(AddTest, AddRowsNamesWhatDoesNotFit) {
  const Tensor x = zeros({2, 3});
  Tensor y = zeros({4, 2});
  const Tensor index = ints({0, 1});
  expect_error("add_rows: x and y must be rows of one width, got [2, 3] and [4, 2]",
               [&] { add_rows(ctx(), x.view(), index.view(), y.view()); });
  Tensor wide = zeros({4, 3});
  const Tensor one = ints({0});
  expect_error("index", [&] { add_rows(ctx(), x.view(), one.view(), wide.view()); });
}

TEST_P(AddTest, ThreadsChangeNothing) {
  const Tensor a = random({257, 512});
  const Tensor b = random({257, 512});
  Tensor want = poisoned({257, 512});
  add(ctx(), a.view(), b.view(), want.view());
  for (int threads : {1, 3, 8}) {
    Context other = fast_context(threads);
    Tensor y = poisoned({257, 512});
    add(other, a.view(), b.view(), y.view());
    expect_same_bits(y.view(), want.view());
  }
}

TEST_P(AddTest, ErrorsNameShapesAndTypes) {
  const Tensor a = zeros({2, 3});
  Tensor y = zeros({3, 2});
  expect_error("add: a, b and y must have one shape, got [2, 3], [2, 3] and [3, 2]",
               [&] { add(ctx(), a.view(), a.view(), y.view()); });
  Tensor whole(Shape{2, 3}, DType::i32, test_device());
  expect_error("and i32; convert them first",
               [&] { add(ctx(), a.view(), a.view(), whole.view()); });
  expect_error("this operation computes on f32",
               [&] { add(ctx(), whole.view(), whole.view(), whole.view()); });
}

}  // namespace
}  // namespace scgraft
