// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>

#include "io/h5ad.h"
#include "io/h5ad_rows.h"
#include "io/json.h"
#include "model/scbert/bins.h"
#include "runtime/random.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/model/npz.h"
#include "tests/model/sparse_rows.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr const char* kGolden = "golden/tok_scbert_bins/arrays.npz";

TokenisedCells tokenised(const ScbertBins& bins, const SparseRows& rows, int threads = 1) {
  Context ctx(Device::cpu(), {.threads = threads});
  TokenisedCells cells;
  bins.tokenise(ctx, rows, cells);
  return cells;
}

std::vector<int32_t> tokens_of(const TokenisedCells& cells, int64_t cell) {
  const auto tokens = cells.view(cell).genes;
  return {tokens.begin(), tokens.end()};
}

// One unit in the last place: NumPy's logarithm in f32 is not rounded correctly everywhere.
void expect_within_ulp(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_LE(std::abs(got[i] - want[i]), std::nextafter(want[i], INFINITY) - want[i]) << i;
}

TEST(ScbertBinsTest, EveryRecordedStepIsTheOriginals) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  const nlohmann::json names =
      read_json(shared_path("golden/tok_scbert_bins/genes.json"), FileKind::data);
  const auto reference = names["reference"].get<std::vector<std::string>>();
  const ScbertBins bins(reference, names["input"].get<std::vector<std::string>>(), "recorded");
  EXPECT_EQ(bins.matched(), 45);
  EXPECT_EQ(bins.length(), 61);
  const Npz::Array raw = npz["raw"];
  const SparseRows rows = sparse_rows(raw.shape[1], raw.all<float>());
  const TokenisedCells cells = tokenised(bins, rows);
  ASSERT_EQ(cells.cells(), raw.shape[0]);
  for (int64_t cell = 0; cell < cells.cells(); ++cell) {
    std::vector<float> x(reference.size(), NAN);
    bins.align(rows.columns_of(cell), rows.values_of(cell), x);
    EXPECT_EQ(x, npz["aligned"].row<float>(cell));
    scbert_normalise(x);
    EXPECT_EQ(x, npz["normalised"].row<float>(cell));
    scbert_log2(x);
    expect_within_ulp(x, npz["log2"].row<float>(cell));
    EXPECT_EQ(tokens_of(cells, cell), npz["tokens"].row<int32_t>(cell));
  }
}

uint64_t fnv1a(uint64_t hash, int32_t token) {
  return (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
}

// Every third gene of a file from the last to the first, every tenth gene of the file being absent.
// Counts of the tokens and their digest (FNV-1a) were made by NumPy 1.24 in float32.
TEST(ScbertBinsTest, AWholeFileGetsTheTokensThatNumpyComputes) {
  constexpr const char* kFile = "data/scp1884_human_gut_crohn.h5ad";
  SCGRAFT_NEEDS_SHARED(kFile);
  const H5ad file = H5ad::open(shared_path(kFile));
  const Strings genes = file.var().index();
  std::vector<std::string> reference;
  for (auto i = static_cast<int64_t>(genes.size()) - 1; i >= 0; i -= 3)
    reference.push_back(genes[static_cast<size_t>(i)] + (i % 10 != 0 ? "" : "-absent"));
  const ScbertBins bins(reference, genes, kFile);
  EXPECT_EQ(bins.matched(), 5613);
  RowReader reader(file, "X", {.chunk_rows = 300});
  std::array<int64_t, 6> counts{};
  uint64_t digest = 1469598103934665603u;
  SparseRows rows;
  while (reader.next(rows))
    for (const int32_t token : tokenised(bins, rows, 2).genes) {
      ++counts.at(static_cast<size_t>(token));
      digest = fnv1a(digest, token);
    }
  EXPECT_THAT(counts, ElementsAre(6016749, 27429, 75798, 105050, 78029, 58685));
  EXPECT_EQ(digest, 14117486342557662713u);
}

TEST(ScbertBinsTest, WholeLogarithmsAreWhole) {
  std::vector<float> x{0, 1, 3, 7, 15, 31, 63, 0.9999f};
  scbert_log2(x);
  EXPECT_EQ(std::vector<float>(x.begin(), x.begin() + 7),
            (std::vector<float>{0, 1, 2, 3, 4, 5, 6}));
  std::vector<int32_t> tokens(x.size());
  scbert_bin(x, 5, tokens);
  EXPECT_THAT(tokens, ElementsAre(0, 1, 2, 3, 4, 5, 5, 0));
}

const std::vector<std::string> kReference{"A", "B", "C", "D"};

TEST(ScbertBinsTest, TheFirstColumnOfANameIsUsedAndOthersAreDropped) {
  const ScbertBins bins(kReference, std::vector<std::string>{"C", "x", "A", "C", "c"}, "f");
  EXPECT_EQ(bins.matched(), 2);
  const TokenisedCells cells = tokenised(bins, sparse_rows(5, {30, 1000, 10, 500, 7,  //
                                                               0, 9, 0, 9, 9}));
  EXPECT_THAT(tokens_of(cells, 0), ElementsAre(5, 0, 5, 0, 0));
  EXPECT_THAT(cells.view(0).values, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(tokens_of(cells, 1), Each(0));
  EXPECT_THAT(cells.empty, ElementsAre(1));
  std::vector<float> x(4);
  const SparseRows row = sparse_rows(5, {15000, 1000, 5000, 500, 7});
  bins.align(row.columns_of(0), row.values_of(0), x);
  EXPECT_THAT(x, ElementsAre(5000, 0, 15000, 0));
  scbert_normalise(x);
  EXPECT_THAT(x, ElementsAre(2500, 0, 7500, 0));
}

class ScbertBinsPropertyTest : public ::testing::Test {
 protected:
  static constexpr int64_t kGenes = 500, kCells = 70;
  ScbertBinsPropertyTest() {
    RandomStream random(5, RandomUse::masking, 0, 0);
    for (int64_t gene = 0; gene < kGenes; ++gene) genes_.push_back(cat("G", gene));
    for (int64_t i = 0; i < kCells * kGenes; ++i) {
      const auto draw = random.below(40);
      dense_.push_back(i / kGenes == 3 || draw > 15 ? 0.f : static_cast<float>(1 << draw));
    }
  }
  std::vector<std::string> genes_;
  std::vector<float> dense_;
};

TEST_F(ScbertBinsPropertyTest, AnyOrderOfColumnsGivesTheSameTokens) {
  const std::vector<std::string> reversed(genes_.rbegin(), genes_.rend());
  std::vector<float> dense;
  for (int64_t cell = 0; cell < kCells; ++cell)
    for (int64_t gene = kGenes; gene-- > 0;)
      dense.push_back(dense_[static_cast<size_t>(cell * kGenes + gene)]);
  const TokenisedCells here = tokenised({genes_, genes_, "f"}, sparse_rows(kGenes, dense_));
  const TokenisedCells there = tokenised({genes_, reversed, "f"}, sparse_rows(kGenes, dense));
  EXPECT_EQ(here.genes, there.genes);
  EXPECT_THAT(here.empty, ElementsAre(3));
  for (int32_t bin = 0; bin <= 5; ++bin)  // the data reach every bin
    EXPECT_NE(std::count(here.genes.begin(), here.genes.end(), bin), 0) << bin;
}

TEST_F(ScbertBinsPropertyTest, ACellIsTheSameAloneInChunksAndOnAnyThread) {
  const ScbertBins bins(genes_, genes_, "f");
  const SparseRows rows = sparse_rows(kGenes, dense_);
  const TokenisedCells all = tokenised(bins, rows);
  EXPECT_EQ(tokenised(bins, rows, 3).genes, all.genes);
  for (const int64_t size : {1, 33})
    for (int64_t begin = 0; begin < kCells; begin += size) {
      const int64_t end = std::min(kCells, begin + size);
      const TokenisedCells part = tokenised(bins, rows_between(rows, begin, end), 2);
      EXPECT_EQ(part.first_cell, begin);
      for (int64_t cell = begin; cell < end; ++cell)
        EXPECT_EQ(tokens_of(part, cell - begin), tokens_of(all, cell));
    }
}

// By a power of two, so that nothing is rounded otherwise.
TEST_F(ScbertBinsPropertyTest, ScalingACellChangesNothing) {
  const ScbertBins bins(genes_, genes_, "f");
  SparseRows rows = sparse_rows(kGenes, dense_);
  const TokenisedCells here = tokenised(bins, rows);
  for (float& value : rows.value) value *= 16;
  EXPECT_EQ(tokenised(bins, rows).genes, here.genes);
}

TEST(ScbertGeneOrderTest, AWrongOrderIsRefused) {
  const std::string trained = gene_order_fingerprint(kReference);
  require_gene_order(kReference, 5, "genes.txt", "m", trained);
  require_gene_order(kReference, 5, "genes.txt", "m");
  const std::string code = "E-GENE-ORDER";
  expect_model_error(code,
                     "genes.txt lists 4 genes; the model m has 16907 positions, which are "
                     "16906 genes and one more",
                     [] { require_gene_order(kReference, 16907, "genes.txt", "m"); });
  expect_model_error(code, "lists the gene \"A\" twice", [] {
    require_gene_order(std::vector<std::string>{"A", "B", "A", "D"}, 5, "genes.txt", "m");
  });
  for (const auto& other :
       {std::vector<std::string>{"B", "A", "C", "D"}, std::vector<std::string>{"AB", "", "C", "D"}})
    expect_model_error(code, "not those of the model m in their order",
                       [&] { require_gene_order(other, 5, "genes.txt", "m", trained); });
}

TEST(ScbertBinsTest, FilesWithTooFewGenesAreRefused) {
  expect_data_error("E-GENE-NONE", "f: 0 of the model's 4 genes are among its 1",
                    [] { ScbertBins(kReference, std::vector<std::string>{"a"}, "f"); });
  expect_data_error("E-GENE-NONE", "genes such as none, the model such as A",
                    [] { ScbertBins(kReference, {}, "f"); });
  const std::vector<std::string> one{"A"};
  expect_data_error("E-GENE-FEW", "f: 1 of the model's 4 genes",
                    [&] { ScbertBins(kReference, one, "f", {.min_share = 0.3}); });
  EXPECT_EQ(ScbertBins(kReference, one, "f").matched(), 1);
}

TEST(ScbertBinsTest, BadExpressionIsRefused) {
  const ScbertBins bins(kReference, kReference, "f");
  expect_data_error("E-VALUES-NEGATIVE", "cell 0", [&] {
    tokenised(bins, sparse_rows(4, {0, -1, 0, 0}));
  });
  expect_data_error("E-VALUES-NONFINITE", "cell 0", [&] {
    tokenised(bins, sparse_rows(4, {0, NAN, 0, 0}));
  });
  EXPECT_THROW(tokenised(bins, sparse_rows(3, {1, 1, 1})), ShapeError);
  EXPECT_THAT(tokenised(bins, sparse_rows(4, {})).genes, IsEmpty());
}

}  // namespace
}  // namespace scgraft
