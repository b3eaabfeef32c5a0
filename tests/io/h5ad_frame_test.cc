// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_frame.h"

#include <gmock/gmock.h>
#include <hdf5.h>

#include <cmath>

#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file of three cells whose obs holds what `fill` puts there, in the order of `columns`.
H5ad with_obs(const std::string& path, const std::vector<std::string>& columns,
              const std::function<void(hdf5::OutNode&)>& fill) {
  return H5ad::open(write_h5ad(path, 3, 2, [&](hdf5::OutNode& root) {
    hdf5::OutNode obs = root.child("obs");
    obs.set_texts("column-order", columns);
    fill(obs);
  }));
}

template <class T>
void add_nullable(hdf5::OutNode& frame, const std::string& name, const char* encoding,
                  const std::vector<T>& values, const std::vector<uint8_t>& mask) {
  hdf5::OutNode group = frame.add_group(name, encoding, "0.1.0");
  if constexpr (std::is_same_v<T, std::string>)
    group.add_strings("values", values);
  else if constexpr (std::is_same_v<T, uint8_t>)
    group.add_booleans("values", values);
  else
    group.add_array("values", values);
  group.add_booleans("mask", mask);
}

template <class T>
void add_categorical(hdf5::OutNode& frame, const std::string& name, const std::vector<T>& codes,
                     const std::vector<std::string>& categories) {
  hdf5::OutNode group = frame.add_group(name, "categorical", "0.2.0");
  group.add_array("codes", codes);
  group.add_strings("categories", categories);
  group.set_boolean("ordered", false);
}

TEST(Frame, ReadsEveryColumnType) {
  TemporaryFolder folder;
  const H5ad file = with_obs(
      folder / "a.h5ad",
      {"f32", "f64", "i8", "i16", "i32", "i64", "flag", "text", "c8", "c16", "c32", "ni", "nb",
       "ns"},
      [](hdf5::OutNode& obs) {
        obs.add_array("f32", std::vector<float>{0.1f, NAN, -2});
        obs.add_array("f64", std::vector<double>{0.1, 1e300, -2});
        obs.add_array("i8", std::vector<int8_t>{-128, 0, 127});
        obs.add_array("i16", std::vector<int16_t>{-32768, 0, 32767});
        obs.add_array("i32", std::vector<int32_t>{INT32_MIN, 0, INT32_MAX});
        obs.add_array("i64", std::vector<int64_t>{INT64_MIN, 0, INT64_MAX});
        obs.add_booleans("flag", std::vector<uint8_t>{1, 0, 1});
        obs.add_strings("text", std::vector<std::string>{"a", "", "\xC3\xA9"});
        add_categorical<int8_t>(obs, "c8", {1, -1, 0}, {"x", "y"});
        add_categorical<int16_t>(obs, "c16", {1, 1, 0}, {"x", "y"});
        add_categorical<int32_t>(obs, "c32", {0, 1, 0}, {"x", "y"});
        add_nullable<int64_t>(obs, "ni", "nullable-integer", {1, 2, 3}, {0, 1, 0});
        add_nullable<uint8_t>(obs, "nb", "nullable-boolean", {1, 0, 1}, {0, 0, 1});
        add_nullable<std::string>(obs, "ns", "nullable-string-array", {"p", "q", "r"}, {1, 0, 0});
      });
  const Frame& obs = file.obs();
  const auto texts = [&](const char* name) {
    const Column column = obs.read(name);
    return Strings{column.text(0), column.text(1), column.text(2)};
  };
  EXPECT_THAT(std::get<Reals>(obs.read("f32").values)[0], 0.1f);
  EXPECT_THAT(texts("f64"), ElementsAre("0.1", "1e+300", "-2.0"));
  EXPECT_THAT(texts("f32")[1], "nan");
  EXPECT_FALSE(obs.read("f32").is_missing(1));  // a NaN is a value
  EXPECT_THAT(texts("i8"), ElementsAre("-128", "0", "127"));
  EXPECT_THAT(texts("i16"), ElementsAre("-32768", "0", "32767"));
  EXPECT_THAT(texts("i32"), ElementsAre("-2147483648", "0", "2147483647"));
  EXPECT_THAT(texts("i64"), ElementsAre("-9223372036854775808", "0", "9223372036854775807"));
  EXPECT_THAT(texts("flag"), ElementsAre("True", "False", "True"));
  EXPECT_THAT(texts("text"), ElementsAre("a", "", "\xC3\xA9"));
  EXPECT_THAT(texts("c8"), ElementsAre("y", "", "x"));
  EXPECT_TRUE(obs.read("c8").is_missing(1));
  EXPECT_THAT(texts("c16"), ElementsAre("y", "y", "x"));
  EXPECT_THAT(texts("c32"), ElementsAre("x", "y", "x"));
  EXPECT_THAT(texts("ni"), ElementsAre("1", "", "3"));
  EXPECT_THAT(texts("nb"), ElementsAre("True", "False", ""));
  EXPECT_THAT(texts("ns"), ElementsAre("", "q", "r"));
  EXPECT_TRUE(obs.info("ni").nullable);
  EXPECT_EQ(obs.info("nb").kind, ColumnKind::boolean);
  EXPECT_EQ(obs.info("ns").kind, ColumnKind::string);
  EXPECT_EQ(obs.info("c8").kind, ColumnKind::categorical);
  EXPECT_EQ(obs.info("i16").stored, "int16");
}

TEST(Frame, LabelsAreDistinctValuesInOrder) {
  TemporaryFolder folder;
  const H5ad file = with_obs(folder / "a.h5ad", {"n", "f", "s", "ni"}, [](hdf5::OutNode& obs) {
    obs.add_array("n", std::vector<int64_t>{10, 9, 10});
    obs.add_array("f", std::vector<double>{2.5, NAN, -1});
    obs.add_strings("s", std::vector<std::string>{"b", "B", "b"});
    add_nullable<int64_t>(obs, "ni", "nullable-integer", {5, 6, 5}, {0, 1, 0});
  });
  const auto labels = [&](const char* name) { return as_categorical(file.obs().read(name)); };
  EXPECT_THAT(labels("n").categories, ElementsAre("9", "10"));  // by value, not by text
  EXPECT_THAT(labels("n").codes, ElementsAre(1, 0, 1));
  EXPECT_THAT(labels("f").categories, ElementsAre("-1.0", "2.5"));
  EXPECT_THAT(labels("f").codes, ElementsAre(1, -1, 0));
  EXPECT_THAT(labels("s").categories, ElementsAre("B", "b"));
  EXPECT_THAT(labels("ni").categories, ElementsAre("5"));
  EXPECT_THAT(labels("ni").codes, ElementsAre(0, -1, 0));
}

// anndata 0.7: codes with a reference attribute, labels under __categories.
TEST(Frame, ReadsCategoricalsOfAnndata07) {
  TemporaryFolder folder;
  const H5ad file = with_obs(folder / "a.h5ad", {"type"}, [](hdf5::OutNode& obs) {
    obs.add_array("type", std::vector<int8_t>{1, 0, -1});
    hdf5::OutNode labels = obs.add_group("__categories", "dict", "0.1.0");
    labels.add_strings("type", std::vector<std::string>{"B", "T"}).set_boolean("ordered", true);
    hdf5::OutNode column = obs.child("type");
    hobj_ref_t reference;
    ASSERT_GE(H5Rcreate(&reference, labels.id(), "type", H5R_OBJECT, -1), 0);
    const hdf5::Handle space(H5Screate(H5S_SCALAR));
    const hdf5::Handle attribute(H5Acreate2(column.id(), "categories", H5T_STD_REF_OBJ, space.get(),
                                            H5P_DEFAULT, H5P_DEFAULT));
    ASSERT_GE(H5Awrite(attribute.get(), H5T_STD_REF_OBJ, &reference), 0);
  });
  EXPECT_EQ(file.obs().info("type").kind, ColumnKind::categorical);
  const Column column = file.obs().read("type");
  EXPECT_EQ(column.text(0), "T");
  EXPECT_EQ(column.text(1), "B");
  EXPECT_TRUE(column.is_missing(2));
  EXPECT_TRUE(std::get<Categorical>(column.values).ordered);
  EXPECT_THAT(file.obs().columns(), ElementsAre("type"));
}

TEST(Frame, NamesWhatIsWrongWithAColumn) {
  TemporaryFolder folder;
  const H5ad file =
      with_obs(folder / "a.h5ad", {"short", "code", "low", "matrix", "group", "hole"},
               [](hdf5::OutNode& obs) {
                 obs.add_array("short", std::vector<double>{1, 2});
                 add_categorical<int8_t>(obs, "code", {0, 2, 0}, {"x", "y"});
                 add_categorical<int8_t>(obs, "low", {0, -2, 0}, {"x", "y"});
                 const int64_t shape[] = {3, 2};
                 obs.add_array<float>("matrix", shape, std::vector<float>(6));
                 obs.add_group("group", "dict", "0.1.0");
                 add_nullable<int64_t>(obs, "hole", "nullable-integer", {1, 2, 3}, {0, 1});
               });
  const auto read = [&](const char* name) { return [&file, name] { file.obs().read(name); }; };
  expect_data_error("E-H5AD-LAYOUT", "has 2 values, obs has 3 rows", read("short"));
  expect_data_error("E-H5AD-CODE", "row 1 has code 2, there are 2 categories", read("code"));
  expect_data_error("E-H5AD-CODE", "code -2", read("low"));
  expect_data_error("E-H5AD-LAYOUT", "one dimension", read("matrix"));
  expect_data_error("E-H5AD-LAYOUT", "a column was wanted, this is a group", read("group"));
  expect_data_error("E-H5AD-LAYOUT", "has 2 values", read("hole"));
  expect_data_error("E-NO-COLUMN", "short, code, low, matrix, group, hole", read("Short"));
  EXPECT_EQ(file.obs().info("matrix").kind, ColumnKind::other);
}

TEST(Frame, ColumnOrderMustNameWhatIsThere) {
  TemporaryFolder folder;
  expect_data_error("E-H5AD-MISSING", "column-order names ghost",
                    [&] { with_obs(folder / "a.h5ad", {"ghost"}, [](hdf5::OutNode&) {}); });
}

TEST(Frame, AnIndexOfNumbersOrCategoriesBecomesText) {
  TemporaryFolder folder;
  const auto index = [&](const char* name, const std::function<void(hdf5::OutNode&)>& add) {
    return with_obs(folder / name, {},
                    [&](hdf5::OutNode& obs) {
                      obs.remove("_index");
                      add(obs);
                    })
        .obs()
        .index();
  };
  EXPECT_THAT(index("a",
                    [](auto& obs) {
                      obs.add_array("_index", std::vector<int64_t>{3, 1, 2});
                    }),
              ElementsAre("3", "1", "2"));
  EXPECT_THAT(index("b",
                    [](auto& obs) {
                      add_categorical<int8_t>(obs, "_index", {1, 0, 1}, {"p", "q"});
                    }),
              ElementsAre("q", "p", "q"));
  EXPECT_THAT(index("c",
                    [](auto& obs) {
                      add_nullable<std::string>(obs, "_index", "nullable-string-array",
                                                {"u", "v", "w"}, {0, 0, 0});
                    }),
              ElementsAre("u", "v", "w"));
}

// Column kinds by first letter (categorical, string, integer, float, boolean) and the sums of all
// matrices, computed with h5py and numpy.
struct Known {
  std::string file, obs, var;
  std::vector<std::pair<std::string, double>> sums;
};

TEST(SharedFiles, HaveTheirColumnsAndSums) {
  const std::vector<Known> all = {
      {"cd4t_crispri_small_perturbations.h5ad",
       "fcccccbccbccccccccccccccccbccffiiiiiffffiiiffiicccccciffffffffff",
       "cccccbbifffff",
       {{"X", 859978.0}}},
      {"fetal_forebrain_hvg2000.h5ad",
       "ccccccccccccffffcccccbcccccccsi",
       "cicicbcccccbffff",
       {{"X", 572078.4861246645}}},
      {"h5ad_variants/adata_scsa_v07.h5ad",
       "cccfbcifffffffffficcffc",
       "bifffffibbfff",
       {{"X", 1625.9250560253859}}},
      {"h5ad_variants/anndataR_example_nullable_gzip.h5ad",
       "ffiibbifffc",
       "sifffffbfff",
       {{"X", 4791.224940657616},
        {"layers/counts", 9805.0},
        {"layers/csc_counts", 9805.0},
        {"layers/dense_X", 9675.00001579523},
        {"layers/dense_counts", 9805.0}}},
      {"h5ad_variants/anndata_v0.11.4_no_X.h5ad", "", "", {}},
      {"h5ad_variants/anndata_v0.5.0.h5ad",
       "ciffffcc",
       "ffffb",
       {{"X", -243.681057988666}, {"raw.X", 319044.23824107647}}},
      {"h5ad_variants/anndata_v0.7.0.h5ad",
       "ccifi",
       "ccifi",
       {{"X", 285.0},
        {"raw/X", 627.0},
        {"layers/array", 302.83045121571445},
        {"layers/sparse", 3.466002232823232}}},
      {"h5ad_variants/cellxgene_nan_compound.h5ad", "iffc", "if", {{"X", NAN}}},
      {"h5ad_variants/cellrank_adata_100.h5ad",
       "cccffffffffff",
       "sffffffffffffffffb",
       {{"X", 14644.749582827091},
        {"raw/X", 2325.7784430384636},
        {"layers/Ms", 40198.22698249761},
        {"layers/Mu", 13453.599489107262},
        {"layers/ambiguous", 23507.0},
        {"layers/fit_t", NAN},
        {"layers/fit_tau", NAN},
        {"layers/fit_tau_", NAN},
        {"layers/spliced", 40084.30589058995},
        {"layers/unspliced", 13314.074570193887},
        {"layers/velocity", NAN},
        {"layers/velocity_u", NAN}}},
      {"h5ad_variants/krumsiek11_augmented_v0-8.h5ad", "cffiibb", "s", {{"X", 2016.5208012731237}}},
      {"h5ad_variants/krumsiek11_v07.h5ad", "c", "", {{"X", 2016.5208012731237}}},
      {"h5ad_variants/multiome_100x100_v07.h5ad", "", "scc", {{"X", 14.0}}},
      {"h5ad_variants/pbmc-small-x-csc.h5ad", "ifiiici", "ffffi", {{"X", -1.7763568394002505e-14}}},
      {"h5ad_variants/pbmc-small-x-csr.h5ad", "ifiiici", "ffffi", {{"X", -5.684341886080802e-14}}},
      {"h5ad_variants/pbmc-small-x-dense.h5ad",
       "ifiiici",
       "ffffi",
       {{"X", -5.684341886080802e-14}}},
      {"h5ad_variants/pbmc-small_raw_f64.h5ad",
       "ifiiici",
       "ffffi",
       {{"X", -5.684341886080802e-14}, {"raw/X", 20440.24469565613}}},
      {"h5ad_variants/pbmc_5k_protein_v3_lzf.h5ad", "iff", "ibcb", {{"X", 1351231.0}}},
      {"h5ad_variants/pbmc_dense_f64.h5ad", "ci", "sii", {{"X", 52825.91867193899}}},
      {"h5ad_variants/x-none.h5ad", "iffc", "i", {}},
      {"human_mouse_gut_pair/human_gut_scp1884.h5ad", "cc", "", {{"X", 4138970.0}}},
      {"human_mouse_gut_pair/mouse_gut_mca.h5ad", "cccciccii", "", {{"X", 2236326.0}}},
      {"kang_ifnb_valid.h5ad", "cfifc", "ci", {{"X", 574351.6324418485}}},
      {"kang_ifnb_valid_current.h5ad", "ccfif", "si", {{"X", 574351.6324418485}}},
      {"mca_mouse_gut_subset.h5ad", "ccciccii", "", {{"X", 2236326.0}}},
      {"papalexi_thp1_eccite_lowmoi.h5ad", "cccii", "", {{"X", 4299765.0}}},
      {"papalexi_thp1_eccite_lowmoi_guides.h5ad", "cc", "c", {{"X", 4619963.0}}},
      {"pbmc68k_reduced.h5ad",
       "ciffffcc",
       "ffffb",
       {{"X", -243.681057988666}, {"raw/X", 319044.23824107647}}},
      {"pbmc8k_hvg200_counts.h5ad", "s", "s", {{"X", 1955352.0}, {"layers/counts", 1955352.0}}},
      {"sc_mixology/sc_mixology_3plates.h5ad", "ccciiiiiiiiiifffc", "sb", {{"X", 22484822.0}}},
      {"scp1884_human_gut_crohn.h5ad", "ccic", "", {{"X", 4138970.0}}},
      {"zheng68k_165cells_counts.h5ad", "cc", "", {{"X", 246289.0}}},
  };
  for (const Known& want : all) {
    SCGRAFT_NEEDS_SHARED("data/" + want.file);
    const H5ad file = H5ad::open(shared_path("data/" + want.file));
    const auto kinds = [](const Frame& frame) {
      std::string letters;
      for (const std::string& column : frame.columns())
        letters += name_of(frame.info(column).kind)[0];
      return letters;
    };
    EXPECT_EQ(kinds(file.obs()), want.obs) << want.file;
    EXPECT_EQ(kinds(file.var()), want.var) << want.file;
    size_t slots = 0;
    for (const MatrixSlot& slot : file.slots()) slots += slot.format != MatrixFormat::none;
    EXPECT_EQ(slots, want.sums.size()) << want.file;
    for (const auto& [slot, sum] : want.sums) {
      double got = 0, size = 0;
      RowReader reader(file, slot);
      for (SparseRows rows; reader.next(rows);)
        for (const float v : rows.value) {
          got += v;
          size += std::abs(v);
        }
      // Every value was rounded to f32 once.
      if (std::isnan(sum))
        EXPECT_TRUE(std::isnan(got)) << want.file << " " << slot;
      else
        EXPECT_NEAR(got, sum, 6e-8 * size) << want.file << " " << slot;
    }
  }
}

}  // namespace
}  // namespace scgraft
