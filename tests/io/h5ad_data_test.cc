// SPDX-License-Identifier: Apache-2.0
// Real files, against the figures that were published with them.
#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "io/h5ad_facts.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

struct Totals {
  double sum = 0;
  float smallest = 0, largest = 0;
  int64_t stored = 0;
};

Totals totals(const H5ad& file, const std::string& slot, RowReaderOptions options = {}) {
  Totals t;
  RowReader reader(file, slot, options);
  for (SparseRows rows; reader.next(rows);)
    for (const float v : rows.value) {
      t.sum += v;
      t.smallest = std::min(t.smallest, v);
      t.largest = std::max(t.largest, v);
      ++t.stored;
    }
  return t;
}

std::map<std::string, int> counts(const H5ad& file, const std::string& column) {
  const Categorical labels = as_categorical(file.obs().read(column));
  std::map<std::string, int> result;
  for (const int32_t code : labels.codes)
    ++result[code < 0 ? "" : labels.categories[static_cast<size_t>(code)]];
  return result;
}

struct Expected {
  std::string file;
  int64_t cells, genes;
  MatrixFormat format;
  std::string dtype;
};

class SharedFile : public ::testing::TestWithParam<Expected> {};

TEST_P(SharedFile, HasItsPublishedShapeAndReadsToTheEnd) {
  const Expected& want = GetParam();
  SCGRAFT_NEEDS_SHARED("data/" + want.file);
  const H5ad file = H5ad::open(shared_path("data/" + want.file));
  EXPECT_EQ(file.n_obs(), want.cells);
  EXPECT_EQ(file.n_vars(), want.genes);
  EXPECT_EQ(file.slot("X").format, want.format);
  EXPECT_EQ(file.slot("X").dtype, want.dtype);
  EXPECT_EQ(static_cast<int64_t>(file.obs().index().size()), want.cells);
  EXPECT_EQ(static_cast<int64_t>(file.var().index().size()), want.genes);
  for (const std::string& column : file.obs().columns())
    EXPECT_EQ(file.obs().read(column).size(), want.cells) << column;
  for (const std::string& column : file.var().columns())
    EXPECT_EQ(file.var().read(column).size(), want.genes) << column;
  for (const MatrixSlot& slot : file.slots()) {
    if (slot.format == MatrixFormat::none) continue;
    int64_t rows = 0;
    RowReader reader(file, slot.path, {.chunk_bytes = 1 << 20, .chunk_rows = 100});
    for (SparseRows chunk; reader.next(chunk);) rows += chunk.rows();
    EXPECT_EQ(rows, want.cells) << slot.path;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, SharedFile,
    ::testing::Values(
        Expected{"pbmc68k_reduced.h5ad", 700, 765, MatrixFormat::dense, "float32"},
        Expected{"pbmc8k_hvg200_counts.h5ad", 7480, 200, MatrixFormat::dense, "float32"},
        Expected{"zheng68k_165cells_counts.h5ad", 165, 9621, MatrixFormat::csr, "float32"},
        Expected{"kang_ifnb_valid_current.h5ad", 1975, 6998, MatrixFormat::csr, "float32"},
        Expected{"scp1884_human_gut_crohn.h5ad", 1020, 18708, MatrixFormat::csr, "float32"},
        Expected{"mca_mouse_gut_subset.h5ad", 1871, 14688, MatrixFormat::csr, "float32"},
        Expected{"fetal_forebrain_hvg2000.h5ad", 2237, 2000, MatrixFormat::csr, "float32"},
        Expected{"sc_mixology/sc_mixology_3plates.h5ad", 909, 12653, MatrixFormat::csr, "int32"},
        Expected{"papalexi_thp1_eccite_lowmoi.h5ad", 20729, 299, MatrixFormat::csr, "float32"},
        Expected{"papalexi_thp1_eccite_lowmoi_guides.h5ad", 20729, 110, MatrixFormat::csr,
                 "float32"},
        Expected{"cd4t_crispri_small_perturbations.h5ad", 500, 2000, MatrixFormat::csr, "float32"},
        Expected{"human_mouse_gut_pair/human_gut_scp1884.h5ad", 1020, 18708, MatrixFormat::csr,
                 "float32"},
        Expected{"human_mouse_gut_pair/mouse_gut_mca.h5ad", 1871, 14688, MatrixFormat::csr,
                 "float32"},
        Expected{"h5ad_variants/anndataR_example_nullable_gzip.h5ad", 50, 100, MatrixFormat::csr,
                 "float32"},
        Expected{"h5ad_variants/krumsiek11_augmented_v0-8.h5ad", 640, 11, MatrixFormat::dense,
                 "float32"},
        Expected{"h5ad_variants/x-none.h5ad", 2638, 1838, MatrixFormat::none, ""},
        Expected{"h5ad_variants/anndata_v0.11.4_no_X.h5ad", 10, 20, MatrixFormat::none, ""},
        Expected{"h5ad_variants/pbmc-small_raw_f64.h5ad", 80, 20, MatrixFormat::dense, "float64"},
        Expected{"h5ad_variants/pbmc_dense_f64.h5ad", 15, 4074, MatrixFormat::dense, "float64"},
        Expected{"h5ad_variants/adata_scsa_v07.h5ad", 200, 100, MatrixFormat::csr, "float32"},
        Expected{"h5ad_variants/cellrank_adata_100.h5ad", 100, 278, MatrixFormat::csr, "float32"},
        Expected{"kang_ifnb_valid.h5ad", 1975, 6998, MatrixFormat::csr, "float32"},
        Expected{"h5ad_variants/anndata_v0.5.0.h5ad", 700, 765, MatrixFormat::dense, "float32"},
        Expected{"h5ad_variants/anndata_v0.7.0.h5ad", 30, 20, MatrixFormat::csr, "float32"},
        Expected{"h5ad_variants/cellxgene_nan_compound.h5ad", 100, 100, MatrixFormat::dense,
                 "float32"},
        Expected{"h5ad_variants/pbmc_5k_protein_v3_lzf.h5ad", 200, 16581, MatrixFormat::dense,
                 "float32"},
        Expected{"h5ad_variants/krumsiek11_v07.h5ad", 640, 11, MatrixFormat::dense, "float32"},
        Expected{"h5ad_variants/multiome_100x100_v07.h5ad", 100, 100, MatrixFormat::csr,
                 "float32"}),
    [](const auto& test) {
      std::string name = test.param.file;
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

TEST(SharedData, Pbmc68kReduced) {
  SCGRAFT_NEEDS_SHARED("data/pbmc68k_reduced.h5ad");
  const H5ad file = H5ad::open(shared_path("data/pbmc68k_reduced.h5ad"));
  const auto labels = counts(file, "bulk_labels");
  EXPECT_EQ(labels.size(), 10u);
  EXPECT_EQ(labels.at("Dendritic"), 240);
  EXPECT_EQ(labels.at("CD14+ Monocyte"), 129);
  EXPECT_EQ(labels.at("CD34+"), 13);
  EXPECT_EQ(counts(file, "phase").at("S"), 182);
  EXPECT_EQ(file.obs().info("percent_mito").kind, ColumnKind::real);
  const Totals x = totals(file, "X");
  EXPECT_NEAR(x.smallest, -2.0, 0.05);
  EXPECT_NEAR(x.largest, 28.4, 0.05);
  EXPECT_EQ(file.slot("raw").stored, 174400);
  EXPECT_EQ(totals(file, "raw").stored, 174400);
  EXPECT_GE(totals(file, "raw").smallest, 0.f);
  EXPECT_THAT(file.obsm_keys(), ::testing::ElementsAre("X_pca", "X_umap"));
  EXPECT_EQ(file.obsm("X_umap").dim, 2);
}

TEST(SharedData, PlainStringLabelsBecomeCategories) {
  SCGRAFT_NEEDS_SHARED("data/pbmc8k_hvg200_counts.h5ad");
  const H5ad file = H5ad::open(shared_path("data/pbmc8k_hvg200_counts.h5ad"));
  EXPECT_EQ(file.obs().info("cell_type").kind, ColumnKind::string);
  const auto labels = counts(file, "cell_type");
  EXPECT_EQ(labels.at("CD8+ T-cells"), 2740);
  EXPECT_EQ(labels.at("Monocytes"), 1583);
  EXPECT_EQ(labels.at("Erythrocytes"), 1);
  const Totals x = totals(file, "X"), layer = totals(file, "counts");
  EXPECT_EQ(x.largest, 6060);
  EXPECT_EQ(x.sum, layer.sum);
}

TEST(SharedData, PublishedTotals) {
  SCGRAFT_NEEDS_SHARED("data/papalexi_thp1_eccite_lowmoi.h5ad");
  const H5ad cells = H5ad::open(shared_path("data/papalexi_thp1_eccite_lowmoi.h5ad"));
  const Totals x = totals(cells, "X");
  EXPECT_EQ(x.sum, 4299765);
  EXPECT_EQ(x.largest, 278);
  EXPECT_EQ(counts(cells, "perturbation").at("non-targeting"), 2386);
  EXPECT_EQ(counts(cells, "bio_rep").at("rep_1"), 9428);
  EXPECT_EQ(cells.obs().index()[0], "cell_00001");
  const H5ad guides = H5ad::open(shared_path("data/papalexi_thp1_eccite_lowmoi_guides.h5ad"));
  EXPECT_EQ(totals(guides, "X").sum, 4619963);
  const H5ad mouse = H5ad::open(shared_path("data/mca_mouse_gut_subset.h5ad"));
  EXPECT_EQ(totals(mouse, "X").sum, 2236326);
  EXPECT_EQ(totals(mouse, "X").largest, 562);
  EXPECT_EQ(counts(mouse, "organ").at("stomach"), 946);
}

TEST(SharedData, MissingLabelsAreCodeMinusOne) {
  SCGRAFT_NEEDS_SHARED("data/human_mouse_gut_pair/human_gut_scp1884.h5ad");
  const H5ad file = H5ad::open(shared_path("data/human_mouse_gut_pair/human_gut_scp1884.h5ad"));
  const auto labels = counts(file, "broad_type");
  EXPECT_EQ(labels.size(), 15u);
  EXPECT_EQ(labels.at(""), 330);
  EXPECT_EQ(labels.at("T cell"), 120);
}

TEST(SharedData, OneMatrixInThreeStoragesReadsTheSame) {
  SCGRAFT_NEEDS_SHARED("data/h5ad_variants/pbmc-small-x-csr.h5ad");
  const auto open = [](const char* storage) {
    return H5ad::open(shared_path(cat("data/h5ad_variants/pbmc-small-x-", storage, ".h5ad")));
  };
  const H5ad csr = open("csr"), csc = open("csc"), full = open("dense");
  EXPECT_EQ(csc.slot("X").format, MatrixFormat::csc);
  const std::vector<float> want = dense(csr, "X");
  EXPECT_EQ(dense(csc, "X"), want);
  EXPECT_EQ(dense(csc, "X", {.chunk_bytes = 64, .chunk_rows = 7}), want);
  EXPECT_EQ(dense(full, "X"), want);
  EXPECT_EQ(dense(full, "X", {.chunk_bytes = 64, .chunk_rows = 7}), want);
  EXPECT_EQ(dense(csr, "X", {.chunk_bytes = 64, .chunk_rows = 7}), want);
}

TEST(SharedData, LegacyCategoricalsOfAnndata07) {
  SCGRAFT_NEEDS_SHARED("data/h5ad_variants/krumsiek11_v07.h5ad");
  const H5ad file = H5ad::open(shared_path("data/h5ad_variants/krumsiek11_v07.h5ad"));
  const Frame& obs = file.obs();
  bool seen = false;
  for (const std::string& column : obs.columns())
    if (obs.info(column).kind == ColumnKind::categorical) {
      seen = true;
      for (const std::string& c : as_categorical(obs.read(column)).categories)
        EXPECT_NE(c.find_first_not_of("0123456789"), std::string::npos);
    }
  EXPECT_TRUE(seen);
}

// The current file was written from the old one: the same cells in two layouts.
TEST(SharedData, TheOldestLayoutReadsLikeTheCurrentOne) {
  SCGRAFT_NEEDS_SHARED("data/kang_ifnb_valid.h5ad");
  const H5ad old = H5ad::open(shared_path("data/kang_ifnb_valid.h5ad"));
  const H5ad current = H5ad::open(shared_path("data/kang_ifnb_valid_current.h5ad"));
  EXPECT_EQ(old.obs().index(), current.obs().index());
  EXPECT_EQ(old.var().index(), current.var().index());
  for (const char* column : {"n_counts", "n_genes", "mt_frac"})
    EXPECT_EQ(old.obs().read(column).values.index(), current.obs().read(column).values.index());
  EXPECT_EQ(std::get<Reals>(old.obs().read("mt_frac").values),
            std::get<Reals>(current.obs().read("mt_frac").values));
  EXPECT_EQ(std::get<Integers>(old.obs().read("n_genes").values),
            std::get<Integers>(current.obs().read("n_genes").values));
  for (const char* column : {"condition", "cell_type"}) {
    const Column a = old.obs().read(column), b = current.obs().read(column);
    for (int64_t row = 0; row < old.n_obs(); ++row) ASSERT_EQ(a.text(row), b.text(row)) << row;
  }
  const Column a = old.var().read("gene_symbol"), b = current.var().read("gene_symbol");
  for (int64_t row = 0; row < old.n_vars(); ++row) ASSERT_EQ(a.text(row), b.text(row)) << row;
  EXPECT_EQ(counts(old, "cell_type").at("FCGR3A+Mono"), 421);
  EXPECT_EQ(dense(old, "X"), dense(current, "X"));
  EXPECT_EQ(old.obsm_keys(), current.obsm_keys());
  for (const std::string& key : old.obsm_keys())
    EXPECT_EQ(old.obsm(key).values, current.obsm(key).values) << key;
  EXPECT_THAT(old.uns_keys(),
              ::testing::ElementsAre("cell_type_colors", "condition_colors", "neighbors"));
}

TEST(SharedData, RawBesideX) {
  SCGRAFT_NEEDS_SHARED("data/h5ad_variants/anndata_v0.5.0.h5ad");
  const H5ad old = H5ad::open(shared_path("data/h5ad_variants/anndata_v0.5.0.h5ad"));
  const H5ad current = H5ad::open(shared_path("data/pbmc68k_reduced.h5ad"));
  EXPECT_EQ(old.slot("raw").path, "raw.X");
  EXPECT_EQ(old.var_of(old.slot("raw")).index(), current.var_of(current.slot("raw")).index());
  EXPECT_EQ(dense(old, "raw"), dense(current, "raw"));
  EXPECT_EQ(counts(old, "bulk_labels"), counts(current, "bulk_labels"));
  EXPECT_EQ(choose_slot(old, "auto").slot, "raw.X");
}

TEST(SharedData, AnotherFormatIsNamed) {
  SCGRAFT_NEEDS_SHARED("data/other_formats/mpfc-starmap.loom");
  expect_data_error("E-H5AD-MISSING", "no obs",
                    [&] { H5ad::open(shared_path("data/other_formats/mpfc-starmap.loom")); });
}

}  // namespace
}  // namespace scgraft
