// SPDX-License-Identifier: Apache-2.0
// Features of relu against those that the original code recorded, with random features and without.
// The test stands here because it reads files.
#include <string>
#include <vector>

#include "kernels/favor_attention.h"
#include "tests/kernels/packed_cells.h"
#include "tests/model/npz.h"

namespace scgraft {
namespace {

constexpr const char* kRecorded = "golden/scbert_generalized_kernel/arrays.npz";
constexpr int64_t kCells = 2, kHeads = 3, kTokens = 5, kHeadDim = 16;
constexpr int64_t kRows = kCells * kTokens, kInner = kHeads * kHeadDim;

// [cells, heads, tokens, width], as recorded.
struct ByHead {
  std::vector<double> values;
  int64_t width;

  // A row of `head`; of the packed rows of the batch.
  const double* row(int64_t packed, int64_t head) const {
    const int64_t cell = packed / kTokens, token = packed % kTokens;
    return values.data() + ((cell * kHeads + head) * kTokens + token) * width;
  }
};

class FavorReluGolden : public OpTest {
 protected:
  void SetUp() override {
    OpTest::SetUp();
    if (IsSkipped()) return;
    SCGRAFT_NEEDS_SHARED(kRecorded);
    const Npz arrays(shared_path(kRecorded));
    x_ = {arrays["x"].values, kHeadDim};
    std::vector<double> identity(kHeadDim * kHeadDim);
    for (size_t i = 0; i < kHeadDim; ++i) identity[i * (kHeadDim + 1)] = 1;
    cases_ = {{"projected", arrays["projection"].values, {arrays["relu_kernel"].values, 20}},
              {"not projected", identity, {arrays["no_projection"].values, kHeadDim}}};
  }
  // Features of x and what they were made with.
  struct Case {
    std::string name;
    std::vector<double> projection;
    ByHead features;
  };
  Tensor tokens() const {
    std::vector<double> packed;
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t head = 0; head < kHeads; ++head)
        packed.insert(packed.end(), x_.row(row, head), x_.row(row, head) + kHeadDim);
    return tensor({kRows, kInner}, packed);
  }
  struct Result {
    Tensor out;
    FavorContext context;
  };
  // The tokens as queries, keys and values of one another.
  Result attend(const Case& of, const std::vector<int32_t>& offsets) {
    const Tensor x = tokens();
    const int64_t features = of.features.width;
    const Tensor projection = tensor({features, kHeadDim}, of.projection);
    const auto cells = static_cast<int64_t>(offsets.size()) - 1;
    Result result{poisoned({kRows, kInner}), FavorContext::take(ctx().activations(), cells, kHeads,
                                                                features, kHeadDim, dtype())};
    favor_attention(ctx(), x.view(), x.view(), x.view(), packing_over(offsets), kHeads,
                    projection.view(), {.kernel = FavorKernel::relu}, result.out.view(),
                    result.context);
    return result;
  }

  ByHead x_;
  std::vector<Case> cases_;
};
INSTANTIATE_OP_TEST(FavorReluGolden);

void expect_recorded(ConstTensorView got, const std::vector<double>& want) {
  ASSERT_EQ(static_cast<size_t>(got.numel()), want.size());
  const std::vector<double> values = values_of(got);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(values[i], want[i], kGoldenActivation) << i;
}

// The mass of a cell of one token is its features.
TEST_P(FavorReluGolden, FeaturesOfEveryToken) {
  const std::vector<int32_t> each = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  for (const Case& c : cases_) {
    SCOPED_TRACE(c.name);
    std::vector<double> want;
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t head = 0; head < kHeads; ++head)
        want.insert(want.end(), c.features.row(row, head),
                    c.features.row(row, head) + c.features.width);
    expect_recorded(attend(c, each).context.mass, want);
  }
}

TEST_P(FavorReluGolden, OutputsAreMadeOfThem) {
  for (const Case& c : cases_) {
    SCOPED_TRACE(c.name);
    std::vector<double> want;
    for (int64_t query = 0; query < kRows; ++query)
      for (int64_t head = 0; head < kHeads; ++head) {
        std::vector<double> sum(kHeadDim);
        double total = 0;
        const int64_t first = query / kTokens * kTokens;
        for (int64_t key = first; key < first + kTokens; ++key) {
          double weight = 0;
          for (int64_t j = 0; j < c.features.width; ++j)
            weight += c.features.row(query, head)[j] * c.features.row(key, head)[j];
          total += weight;
          for (int64_t d = 0; d < kHeadDim; ++d)
            sum[static_cast<size_t>(d)] += weight * x_.row(key, head)[d];
        }
        for (const double s : sum) want.push_back(s / total);
      }
    expect_recorded(attend(c, {0, 5, 10}).out.view(), want);
  }
}

}  // namespace
}  // namespace scgraft
