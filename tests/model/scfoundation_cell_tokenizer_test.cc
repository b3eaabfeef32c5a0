// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numeric>

#include "model/scfoundation/cell_tokenizer.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/model/npz.h"
#include "tests/model/sparse_rows.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

constexpr const char* kGolden = "golden/scfoundation_mae_autobin/arrays.npz";

std::vector<std::string> named(int64_t n) {
  std::vector<std::string> genes;
  for (int64_t i = 0; i < n; ++i) genes.push_back(cat("G", i));
  return genes;
}

TokenisedCells tokenised(const ScfoundationTokenizer& tokenizer, const SparseRows& rows,
                         int threads = 1) {
  Context ctx(Device::cpu(), {.threads = threads});
  TokenisedCells cells;
  tokenizer.tokenise(ctx, rows, cells);
  return cells;
}

TEST(ScfoundationTokenizer, EntriesAndTokensAreTheOriginals) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  const auto counts = npz["counts"], want = npz["pretrain_gene_x"], gathered = npz["gathered_x"],
             places = npz["position_gene_ids"];
  std::vector<float> dense;
  for (const double count : counts.all<double>()) dense.push_back(static_cast<float>(count));
  const SparseRows rows = sparse_rows(counts.shape[1], dense);
  const std::vector<std::string> genes = named(counts.shape[1]);
  const ScfoundationTokenizer tokenizer(genes, genes, "recorded");
  ASSERT_EQ(tokenizer.entries(), want.shape[1]);
  const std::vector<float> entries = want.all<float>(), values = gathered.all<float>();
  const std::vector<int64_t> ids = places.all<int64_t>();
  const TokenisedCells cells = tokenised(tokenizer, rows);
  ASSERT_EQ(cells.cells(), want.shape[0]);
  for (int64_t cell = 0; cell < cells.cells(); ++cell) {
    std::vector<float> x(static_cast<size_t>(tokenizer.entries()), NAN);
    tokenizer.fill(rows.columns_of(cell), rows.values_of(cell), x);
    const auto first = entries.begin() + cell * want.shape[1];
    EXPECT_EQ(x, std::vector<float>(first, first + want.shape[1]));
    // Both cells have as many expressed genes, so nothing is padding.
    const CellView view = cells.view(cell);
    const auto n = static_cast<size_t>(gathered.shape[1]);
    ASSERT_EQ(view.genes.size(), n);
    for (size_t i = 0; i < n; ++i) {
      EXPECT_EQ(view.values[i], values[static_cast<size_t>(cell) * n + i]);
      EXPECT_EQ(view.genes[i], ids[static_cast<size_t>(cell) * n + i]);
    }
  }
}

// Genes in the model's order: missing ones are 0, others are dropped and do not count.
TEST(ScfoundationTokenizer, AlignsAndNormalisesByTheModelsGenes) {
  const std::vector<std::string> model = {"A", "B", "C", "D"};
  const std::vector<std::string> file = {"C", "X", "A", "C"};
  const ScfoundationTokenizer tokenizer(model, file, "f", {.target = {.value = 5}});
  EXPECT_EQ(tokenizer.matched(), 2);
  const SparseRows rows = sparse_rows(4, {30, 500, 70, 9, 0, 1, 0, 0});
  std::vector<float> x(6, NAN);
  tokenizer.fill(rows.columns_of(0), rows.values_of(0), x);
  EXPECT_THAT(x, ElementsAre(FloatEq(static_cast<float>(std::log(7001.0))), 0.0f,
                             FloatEq(static_cast<float>(std::log(3001.0))), 0.0f, 5.0f, 2.0f));
  const TokenisedCells cells = tokenised(tokenizer, rows);
  EXPECT_THAT(cells.offsets, ElementsAre(0, 4, 7));
  EXPECT_THAT(cells.genes, ElementsAre(0, 2, 4, 5, 6, 4, 5));
  EXPECT_THAT(cells.view(1).values, ElementsAre(103.0f, 0.0f, 0.0f));
  EXPECT_THAT(cells.empty, ElementsAre(1));
}

TEST(ScfoundationTokenizer, DepthsAreFixedAFactorOrAShift) {
  const std::vector<std::string> genes = named(2);
  const SparseRows rows = sparse_rows(2, {40, 60});
  const auto depth = [&](const char* text) {
    const ScfoundationTokenizer tokenizer(genes, genes, "f", {.target = TargetDepth::parse(text)});
    std::vector<float> x(4);
    tokenizer.fill(rows.columns_of(0), rows.values_of(0), x);
    EXPECT_EQ(x[3], 2.0f);
    return x[2];
  };
  EXPECT_EQ(depth("t4"), 4.0f);
  EXPECT_EQ(depth("t3.5"), 3.5f);
  EXPECT_EQ(depth("f10"), 3.0f);
  EXPECT_EQ(depth("a1.25"), 3.25f);
  for (const char* wrong : {"", "t", "x4", "4", "f0", "f-1", "a1x", "tnan", "bulk2"})
    expect_file_error(ExitCode::usage, "E-CONFIG", "target depth",
                      [&] { TargetDepth::parse(wrong); });
}

// Both are of what the network reads.
TEST(ScfoundationTokenizer, ABulkProfileAsksForItsOwnDepth) {
  const std::vector<std::string> genes = named(3);
  const ScfoundationTokenizer tokenizer(genes, genes, "f", {.target = TargetDepth::parse("bulk")});
  const SparseRows rows = sparse_rows(3, {40, 0, 60, 0, 0, 0});
  std::vector<float> x(5);
  tokenizer.fill(rows.columns_of(0), rows.values_of(0), x);
  const auto depth = static_cast<float>(std::log10(std::log1p(4000.0) + std::log1p(6000.0)));
  EXPECT_THAT(x, ElementsAre(FloatEq(static_cast<float>(std::log1p(4000.0))), 0.0f,
                             FloatEq(static_cast<float>(std::log1p(6000.0))), FloatEq(depth),
                             FloatEq(depth)));
  tokenizer.fill(rows.columns_of(1), rows.values_of(1), x);
  EXPECT_THAT(x, ElementsAre(0.0f, 0.0f, 0.0f, 0.0f, 0.0f));
}

TEST(ScfoundationTokenizer, NormalisedValuesStayAndTheirSumIsTheTotal) {
  const std::vector<std::string> genes = named(3);
  const ScfoundationTokenizer tokenizer(genes, genes, "f", {.normalised = true});
  const SparseRows rows = sparse_rows(3, {6.5f, 0, 3.5f});
  std::vector<float> x(5);
  tokenizer.fill(rows.columns_of(0), rows.values_of(0), x);
  EXPECT_THAT(x, ElementsAre(6.5f, 0.0f, 3.5f, 4.0f, 1.0f));
}

TEST(ScfoundationTokenizer, TAndSAreTokensWhateverTheyAre) {
  const std::vector<std::string> genes = named(2);
  const ScfoundationTokenizer tokenizer(genes, genes, "f");
  const TokenisedCells cells = tokenised(tokenizer, sparse_rows(2, {0, 1}));
  EXPECT_THAT(cells.genes, ElementsAre(1, 2, 3));
  EXPECT_EQ(cells.values[2], 0.0f);  // log10(1)
}

TEST(ScfoundationTokenizer, ThreadsChangeNoBit) {
  const std::vector<std::string> genes = named(50);
  const ScfoundationTokenizer tokenizer(genes, genes, "f");
  RandomStream random(3, RandomUse::simulate, 1);
  std::vector<float> dense(200 * 50);
  for (float& v : dense) v = static_cast<float>(random.below(4));
  const SparseRows rows = sparse_rows(50, dense);
  const TokenisedCells one = tokenised(tokenizer, rows, 1), three = tokenised(tokenizer, rows, 3);
  EXPECT_EQ(one.offsets, three.offsets);
  EXPECT_EQ(one.genes, three.genes);
  EXPECT_EQ(one.values, three.values);
}

TEST(ScfoundationTokenizer, WhatCannotBeReadIsRefused) {
  const std::vector<std::string> model = named(20), other = {"X", "Y"}, few = {"G3"};
  expect_file_error(ExitCode::data, "E-GENE-NONE", "0 of the model's 20",
                    [&] { ScfoundationTokenizer(model, other, "f"); });
  expect_file_error(ExitCode::data, "E-GENE-FEW", "1 of the model's 20",
                    [&] { ScfoundationTokenizer(model, few, "f"); });
  const ScfoundationTokenizer tokenizer(model, model, "f");
  std::vector<float> dense(20, 1.0f);
  dense[7] = -1;
  expect_file_error(ExitCode::data, "E-VALUES-NEGATIVE", "f",
                    [&] { tokenised(tokenizer, sparse_rows(20, dense)); });
}

TEST(ScfoundationGenes, TheTableIsReadAndChecked) {
  TemporaryFolder folder;
  const auto read = [&](const std::string& text, int64_t genes = 3) {
    return read_scfoundation_genes(put(folder / "genes.tsv", text), genes);
  };
  const std::string head = "gene_name\tindex\n";
  EXPECT_THAT(read(head + "A1BG\t0\nA1CF\t1\nZZZ3\t2\n"), ElementsAre("A1BG", "A1CF", "ZZZ3"));
  EXPECT_THAT(read("gene_name\tindex\r\nA\t0\r\nB\t1\r\nC\t2"), ElementsAre("A", "B", "C"));
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"", "does not begin"},
      {"A\t0\nB\t1\nC\t2\n", "does not begin"},
      {head + "A\t0\nB\t1\n", "lists 2 genes, the model has 3"},
      {head + "A\t0\nB\t2\nC\t1\n", "line 3 has the index 2, 1 was wanted"},
      {head + "A\t0\nA\t1\nC\t2\n", "lists the gene \"A\" twice"},
      {head + "A\t0\nB 1\nC\t2\n", "line 3 is no gene and index"},
      {head + "A\t0\n\nC\t2\n", "line 3 is no gene and index"},
      {head + "A\t0x\n", "line 2 is no gene and index"}};
  for (const auto& [text, part] : wrong)
    expect_model_error("E-GENE-ORDER", part, [&, content = text] { read(content); });
}

}  // namespace
}  // namespace scgraft
