// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>

#include "model/preprocess.h"
#include "model/scgpt/binning.h"
#include "model/scgpt/token_reader.h"
#include "model/scgpt/tokenizer.h"
#include "model/token_store.h"
#include "runtime/error.h"
#include "runtime/random.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr int64_t kCells = 70;
constexpr int64_t kGenes = 40;
constexpr int32_t kCls = 40;

// gene g of the file is token 39 - g; every tenth gene is unknown. Cell 5 is empty, cell 6 has
// unknown genes only.
float count_of(int64_t cell, int64_t gene) {
  if (cell == 5 || (cell == 6 && gene % 10 != 3)) return 0;
  return static_cast<float>((cell * 31 + gene * 17) % 23 % 7);
}
bool is_known(int64_t gene) { return gene % 10 != 3; }

class TokenReaderTest : public ::testing::Test {
 protected:
  TokenReaderTest() {
    std::string json = "{";
    for (int64_t gene = 0; gene < kGenes; ++gene)
      json += cat("\"", is_known(gene) ? "gene" : "other", gene, "\": ", kGenes - 1 - gene, ", ");
    json += "\"<cls>\": 40, \"<pad>\": 41}";
    vocabulary_ = Vocabulary::parse(std::as_bytes(std::span(json)), "vocab.json");
  }

  H5ad write(const std::function<float(int64_t, int64_t)>& value = count_of) {
    std::vector<float> x;
    for (int64_t cell = 0; cell < kCells; ++cell)
      for (int64_t gene = 0; gene < kGenes; ++gene) x.push_back(value(cell, gene));
    return H5ad::open(
        write_h5ad(folder_ / cat(files_++, ".h5ad"), kCells, kGenes, [&](hdf5::OutNode& root) {
          const int64_t shape[] = {kCells, kGenes};
          root.add_array<float>("X", shape, std::span<const float>(x));
        }));
  }

  struct All {
    TokenStore store;
    std::vector<int64_t> empty;
    std::vector<float> normalised;  // dense
    std::vector<std::string> genes;
  };
  All read(const H5ad& file, const Preparation& preparation, int threads = 1,
           RowReaderOptions options = {}) {
    Context ctx(Device::cpu(), {.threads = threads});
    TokenReader reader(ctx, file, vocabulary_, kCls, preparation, options);
    All all;
    all.genes = reader.genes();
    SparseRows rows;
    for (TokenisedCells cells; reader.next(cells, &rows);) {
      EXPECT_EQ(rows.rows(), cells.cells());
      all.store.append(cells);
      all.empty.insert(all.empty.end(), cells.empty.begin(), cells.empty.end());
      for (int64_t row = 0; row < rows.rows(); ++row) {
        std::vector<float> dense(kGenes, 0);
        for (size_t k = 0; k < rows.columns_of(row).size(); ++k)
          dense[static_cast<size_t>(rows.columns_of(row)[k])] = rows.values_of(row)[k];
        all.normalised.insert(all.normalised.end(), dense.begin(), dense.end());
      }
    }
    EXPECT_EQ(all.store.size(), reader.cells());
    return all;
  }

  static void expect_same(const TokenStore& a, const TokenStore& b) {
    ASSERT_EQ(a.size(), b.size());
    for (int64_t i = 0; i < a.size(); ++i) {
      EXPECT_THAT(a.view(i).genes, ElementsAreArray(b.view(i).genes)) << i;
      EXPECT_THAT(a.view(i).values, ElementsAreArray(b.view(i).values)) << i;
    }
  }

  TemporaryFolder folder_;
  int files_ = 0;
  Vocabulary vocabulary_;
};

TEST_F(TokenReaderTest, ACellIsItsKnownExpressedGenesBinned) {
  const All all = read(write(), {.seed = 11});
  for (const int64_t cell : {0, 1, 42, 69}) {
    std::vector<int32_t> genes{kCls};
    std::vector<float> values;
    double total = 0;
    for (int64_t gene = 0; gene < kGenes; ++gene) {
      if (!is_known(gene) || count_of(cell, gene) == 0) continue;
      genes.push_back(static_cast<int32_t>(kGenes - 1 - gene));
      values.push_back(count_of(cell, gene));
      total += values.back();
    }
    const std::span tokens = std::span(genes).subspan(1);
    normalise_log1p(values, total, 1e4);
    const uint64_t key = cell_key(tokens, values);
    std::vector<double> uniforms;
    for (const int32_t token : tokens) uniforms.push_back(tie_break(11, key, token));
    BinningScratch scratch;
    bin_values(values, 51, uniforms, values, scratch);
    values.insert(values.begin(), 0.f);
    EXPECT_THAT(all.store.view(cell).genes, ElementsAreArray(genes)) << cell;
    EXPECT_THAT(all.store.view(cell).values, ElementsAreArray(values)) << cell;
    EXPECT_EQ(all.store.view(cell).cell, cell);
  }
}

// Ties (most counts are 1) and samples are drawn by what a cell is, not by where it stands.
TEST_F(TokenReaderTest, ACellIsTheSameInAnyPlaceOfAFile) {
  const Preparation preparation{.max_length = 12, .seed = 3};
  const auto turned = [](int64_t cell, int64_t gene) {
    return count_of((cell * 11 + 7) % kCells, gene);
  };
  const All straight = read(write(), preparation);
  const All moved = read(write(turned), preparation);
  for (int64_t cell = 0; cell < kCells; ++cell) {
    const CellView want = straight.store.view((cell * 11 + 7) % kCells);
    EXPECT_THAT(moved.store.view(cell).genes, ElementsAreArray(want.genes)) << cell;
    EXPECT_THAT(moved.store.view(cell).values, ElementsAreArray(want.values)) << cell;
  }
}

TEST_F(TokenReaderTest, CellsWithoutKnownGenesAreClsAloneAndReported) {
  const All all = read(write(), {});
  EXPECT_THAT(all.empty, ElementsAre(5, 6));
  EXPECT_THAT(all.store.view(5).genes, ElementsAre(kCls));
  EXPECT_THAT(all.store.view(6).values, ElementsAre(0.f));
}

TEST_F(TokenReaderTest, ChunksAndThreadsChangeNothing) {
  const H5ad file = write();
  const Preparation preparation{.max_length = 12, .seed = 5};
  const All one = read(file, preparation);
  const All other = read(file, preparation, 3, {.chunk_bytes = 1 << 12, .chunk_rows = 7});
  expect_same(one.store, other.store);
  EXPECT_EQ(one.empty, other.empty);
  EXPECT_EQ(one.normalised, other.normalised);
}

TEST_F(TokenReaderTest, LongCellsAreSampledAndTheSeedDecides) {
  const H5ad file = write();
  const All whole = read(file, {.seed = 1});
  const All cut = read(file, {.max_length = 10, .seed = 1});
  const All other = read(file, {.max_length = 10, .seed = 2});
  EXPECT_EQ(cut.store.longest(), 10);
  bool differs = false;
  for (int64_t cell = 0; cell < kCells; ++cell) {
    const CellView full = whole.store.view(cell);
    const CellView kept = cut.store.view(cell);
    EXPECT_EQ(kept.genes[0], kCls);
    EXPECT_EQ(kept.genes.size(), std::min<size_t>(full.genes.size(), 10));
    std::map<int32_t, float> bins;
    for (size_t i = 0; i < full.genes.size(); ++i) bins[full.genes[i]] = full.values[i];
    for (size_t i = 0; i < kept.genes.size(); ++i)
      EXPECT_EQ(bins.at(kept.genes[i]), kept.values[i]);  // bins are those of the whole cell
    differs = differs || !std::ranges::equal(kept.genes, other.store.view(cell).genes);
  }
  EXPECT_TRUE(differs);
}

TEST_F(TokenReaderTest, NormalisedRowsCoverAllColumns) {
  const All all = read(write(), {});
  for (int64_t cell = 0; cell < kCells; ++cell) {
    double sum = 0;
    for (int64_t gene = 0; gene < kGenes; ++gene)
      sum += std::expm1(
          static_cast<double>(all.normalised[static_cast<size_t>(cell * kGenes + gene)]));
    EXPECT_NEAR(sum, cell == 5 ? 0 : 1e4, 0.05) << cell;
  }
}

TEST_F(TokenReaderTest, LoggedValuesAreUsedAsTheyAreAndGiveTheSameTokens) {
  const auto logged = [](int64_t cell, int64_t gene) {
    double total = 0;
    for (int64_t g = 0; g < kGenes; ++g)
      if (is_known(g)) total += count_of(cell, g);
    if (total == 0) return 0.f;
    return std::log1p(count_of(cell, gene) / (static_cast<float>(total) / 1e4f));
  };
  const All counts = read(write(), {.seed = 3});
  const All logs = read(write(logged), {.seed = 3});
  for (const int64_t cell : {0, 5, 33})
    for (int64_t gene = 0; gene < kGenes; ++gene)
      EXPECT_EQ(logs.normalised[static_cast<size_t>(cell * kGenes + gene)], logged(cell, gene));
  ASSERT_EQ(counts.store.size(), logs.store.size());
  for (int64_t i = 0; i < counts.store.size(); ++i)
    if (i != 6) {
      EXPECT_THAT(counts.store.view(i).values, ElementsAreArray(logs.store.view(i).values)) << i;
    }
}

TEST_F(TokenReaderTest, GenesOfTheTrainingAreTheOnlyOnesUsed) {
  const H5ad file = write();
  const All variable = read(file, {.hvg = "seurat_v3", .hvg_count = 8});
  EXPECT_EQ(variable.genes.size(), 8u);
  EXPECT_LE(variable.store.longest(), 9);
  Preparation later{.hvg = "seurat_v3", .hvg_count = 8};
  later.genes = variable.genes;
  expect_same(variable.store, read(file, later).store);
  // Two genes tie for the eighth place.
  EXPECT_EQ(read(file, {.hvg = "cell_ranger", .hvg_count = 8}).genes.size(), 9u);

  later.genes = {"gene1", "gene0", "nowhere"};
  try {
    read(file, later);
    ADD_FAILURE();
  } catch (const ModelError& error) {
    EXPECT_EQ(error.code(), "E-PREPARE");
    EXPECT_THAT(error.what(), HasSubstr("\"nowhere\""));
  }
  later.genes = {"gene1", "gene0"};
  EXPECT_THAT(read(file, later).genes, ElementsAre("gene0", "gene1"));
}

TEST_F(TokenReaderTest, SeuratV3NeedsCounts) {
  const H5ad file = write([](int64_t cell, int64_t gene) { return count_of(cell, gene) * 0.37f; });
  try {
    read(file, {.hvg = "seurat_v3", .hvg_count = 8});
    ADD_FAILURE();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), "E-HVG-VALUES");
    EXPECT_THAT(error.hint(), HasSubstr("cell_ranger"));
  }
}

TEST_F(TokenReaderTest, ReadsAgainFromTheStart) {
  const H5ad file = write();
  Context ctx;
  TokenReader reader(ctx, file, vocabulary_, kCls, {});
  TokenStore first;
  TokenStore second;
  TokenisedCells cells;
  while (reader.next(cells)) first.append(cells);
  EXPECT_FALSE(reader.next(cells));
  reader.rewind();
  while (reader.next(cells)) second.append(cells);
  expect_same(first, second);
}

TEST_F(TokenReaderTest, EveryBinOfARealCellIsInRange) {
  const std::string data = "data/zheng68k_165cells_counts.h5ad";
  const std::string vocab = "data/vocab/scgpt_default_census_vocab.json";
  SCGRAFT_NEEDS_SHARED(data);
  SCGRAFT_NEEDS_SHARED(vocab);
  Vocabulary vocabulary = Vocabulary::open(shared_path(vocab));
  vocabulary.append_specials();
  const H5ad file = H5ad::open(shared_path(data));
  Context ctx;
  TokenReader reader(ctx, file, vocabulary, vocabulary.id("<cls>"), {});
  EXPECT_GT(reader.match().share(), 0.9);
  TokenStore store;
  for (TokenisedCells cells; reader.next(cells);) {
    EXPECT_TRUE(cells.empty.empty());
    store.append(cells);
  }
  ASSERT_EQ(store.size(), 165);
  for (int64_t i = 0; i < store.size(); ++i) {
    const CellView cell = store.view(i);
    EXPECT_EQ(cell.genes[0], vocabulary.id("<cls>"));
    EXPECT_EQ(cell.values[0], 0);
    EXPECT_THAT(cell.values.subspan(1),
                Each(::testing::AllOf(::testing::Ge(1), ::testing::Le(50))));
    EXPECT_EQ(*std::max_element(cell.values.begin(), cell.values.end()), 50);
  }
}

}  // namespace
}  // namespace scgraft
