// SPDX-License-Identifier: Apache-2.0
#include "model/highly_variable.h"

#include <algorithm>

#include "runtime/error.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kCells = 400;
constexpr int64_t kGenes = 300;

// A matrix of counts that any language makes the same way: a 32-bit hash of (cell, gene) decides.
float count_at(uint32_t cell, uint32_t gene) {
  uint32_t h = cell * 2654435761u + gene * 40503u + 12345u;
  h ^= h >> 16;
  h *= 0x45d9f3bu;
  h ^= h >> 16;
  h *= 0x45d9f3bu;
  h ^= h >> 16;
  if (h % 97 >= 3 + gene * 7 % 60) return 0;
  const uint32_t height = 1 + (h >> 8) % (1 + gene * gene % 17);
  const uint32_t burst = gene % 11 == 0 && cell % 4 == gene % 4 ? 6 : 1;
  return static_cast<float>(height * burst);
}

class HighlyVariableTest : public ::testing::Test {
 protected:
  // `extra` columns follow whose values are wild.
  H5ad write(int64_t extra = 0) {
    const int64_t columns = kGenes + extra;
    std::vector<float> x;
    for (int64_t cell = 0; cell < kCells; ++cell)
      for (int64_t gene = 0; gene < columns; ++gene)
        x.push_back(gene < kGenes
                        ? count_at(static_cast<uint32_t>(cell), static_cast<uint32_t>(gene))
                        : static_cast<float>(cell % 7 == 0 ? 100 * cell : 0));
    return H5ad::open(
        write_h5ad(folder_ / cat(files_++, ".h5ad"), kCells, columns, [&](hdf5::OutNode& root) {
          const int64_t shape[] = {kCells, columns};
          root.add_array<float>("X", shape, std::span<const float>(x));
        }));
  }

  static std::vector<int32_t> choose(const H5ad& file, HvgFlavour flavour, int64_t count,
                                     int64_t candidates = 0, RowReaderOptions reading = {}) {
    RowReader reader(file, "X", reading);
    std::vector<uint8_t> may(static_cast<size_t>(reader.columns()), candidates == 0);
    for (int64_t c = 0; c < candidates; ++c) may[static_cast<size_t>(c)] = 1;
    return highly_variable(reader, may,
                           {.flavour = flavour,
                            .count = count,
                            .target_sum = flavour == HvgFlavour::cell_ranger ? 1e4 : 0},
                           "x.h5ad");
  }

  TemporaryFolder folder_;
  int files_ = 0;
};

// Expected lists: scanpy 1.11.5 with scikit-misc 0.5.3, pp.highly_variable_genes(n_top_genes=40),
// for cell_ranger after normalize_total(target_sum=1e4) and log1p.
const std::vector<int32_t> kSeuratV3{10,  11,  22,  27,  36,  43,  44,  55,  71,  78,
                                     88,  95,  99,  105, 112, 121, 129, 131, 132, 146,
                                     156, 165, 173, 180, 190, 198, 199, 207, 209, 216,
                                     224, 241, 242, 250, 258, 267, 275, 284, 286, 292};
const std::vector<int32_t> kCellRanger{5,   9,   14,  21,  22,  24,  26,  29,  30,  31,
                                       38,  43,  44,  48,  60,  64,  82,  92,  98,  107,
                                       110, 133, 143, 146, 158, 163, 174, 180, 208, 209,
                                       211, 217, 231, 242, 253, 262, 264, 279, 292, 296};

TEST_F(HighlyVariableTest, SeuratV3IsScanpys) {
  EXPECT_EQ(choose(write(), HvgFlavour::seurat_v3, 40), kSeuratV3);
}

TEST_F(HighlyVariableTest, CellRangerIsScanpys) {
  EXPECT_EQ(choose(write(), HvgFlavour::cell_ranger, 40), kCellRanger);
}

TEST_F(HighlyVariableTest, ColumnsThatAreNoCandidatesChangeNothing) {
  const H5ad file = write(5);
  EXPECT_EQ(choose(file, HvgFlavour::seurat_v3, 40, kGenes), kSeuratV3);
  EXPECT_EQ(choose(file, HvgFlavour::cell_ranger, 40, kGenes), kCellRanger);
}

TEST_F(HighlyVariableTest, ChunksChangeNothing) {
  const H5ad file = write();
  const RowReaderOptions tiny{.chunk_bytes = 1 << 14, .chunk_rows = 7};
  EXPECT_EQ(choose(file, HvgFlavour::seurat_v3, 40, 0, tiny), kSeuratV3);
  EXPECT_EQ(choose(file, HvgFlavour::cell_ranger, 40, 0, tiny), kCellRanger);
}

TEST_F(HighlyVariableTest, MoreThanThereAreGivesAllAndNoneIsRefused) {
  const H5ad file = write();
  EXPECT_EQ(choose(file, HvgFlavour::seurat_v3, 1000).size(), static_cast<size_t>(kGenes));
  EXPECT_THROW(choose(file, HvgFlavour::seurat_v3, 0), ConfigError);
  EXPECT_THROW(parse_hvg_flavour("seurat"), ConfigError);
}

TEST_F(HighlyVariableTest, Pbmc8kIsScanpys) {
  const std::string path = "data/pbmc8k_hvg200_counts.h5ad";
  SCGRAFT_NEEDS_SHARED(path);
  const H5ad file = H5ad::open(shared_path(path));
  // scanpy 1.11.5, n_top_genes=50, as above.
  EXPECT_THAT(choose(file, HvgFlavour::seurat_v3, 50),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                          21, 22, 23, 24, 25, 26, 28, 29, 30, 32, 33, 34, 37, 38, 39, 40, 41, 42,
                          43, 48, 51, 53, 56, 58, 65, 69, 71, 85, 168));
  EXPECT_THAT(choose(file, HvgFlavour::cell_ranger, 50),
              ElementsAre(0, 1, 3, 4, 6, 7, 9, 10, 13, 15, 16, 17, 20, 23, 26, 28, 31, 36, 38, 39,
                          41, 46, 52, 53, 65, 68, 77, 80, 85, 87, 89, 91, 102, 109, 112, 113, 118,
                          126, 130, 132, 136, 138, 145, 156, 161, 163, 171, 186, 196, 197));
}

// Number, sum and sum of squares of the chosen columns.
void expect_columns(const std::vector<int32_t>& got, int64_t sum, int64_t squares) {
  int64_t got_sum = 0;
  int64_t got_squares = 0;
  for (const int64_t column : got) got_sum += column, got_squares += column * column;
  EXPECT_EQ(got.size(), 500u);
  EXPECT_EQ(got_sum, sum);
  EXPECT_EQ(got_squares, squares);
}

TEST_F(HighlyVariableTest, WholeTranscriptomesAreScanpys) {
  const std::string human = "data/scp1884_human_gut_crohn.h5ad";
  const std::string mouse = "data/mca_mouse_gut_subset.h5ad";
  SCGRAFT_NEEDS_SHARED(human);
  SCGRAFT_NEEDS_SHARED(mouse);
  // scanpy 1.11.5, n_top_genes=500, as above.
  const H5ad first = H5ad::open(shared_path(human));
  expect_columns(choose(first, HvgFlavour::seurat_v3, 500), 4106489, 45653080103);
  expect_columns(choose(first, HvgFlavour::cell_ranger, 500), 4017716, 43974017470);
  const H5ad second = H5ad::open(shared_path(mouse));
  expect_columns(choose(second, HvgFlavour::seurat_v3, 500), 3366406, 31027823678);
  expect_columns(choose(second, HvgFlavour::cell_ranger, 500), 3268881, 29340454151);
}

TEST_F(HighlyVariableTest, FewCellsWithTiedMeansAreNoFailure) {
  // scanpy fails here with "near singularities": thousands of genes share a handful of means.
  const std::string path = "data/zheng68k_165cells_counts.h5ad";
  SCGRAFT_NEEDS_SHARED(path);
  const H5ad file = H5ad::open(shared_path(path));
  EXPECT_EQ(choose(file, HvgFlavour::seurat_v3, 500).size(), 500u);
  expect_columns(choose(file, HvgFlavour::cell_ranger, 500), 2406292, 15447038886);
}

}  // namespace
}  // namespace scgraft
