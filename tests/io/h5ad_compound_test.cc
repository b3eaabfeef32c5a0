// SPDX-License-Identifier: Apache-2.0
// Files of anndata before 0.7: compound tables, labels in uns, h5sparse matrices, raw beside X.
#include <gmock/gmock.h>
#include <hdf5.h>

#include <algorithm>
#include <cstring>

#include "io/h5ad_frame.h"
#include "io/h5ad_writer.h"
#include "tests/io/h5ad_fixture.h"

namespace scgraft {
namespace {

using hdf5::Handle;
using hdf5::OutFile;
using hdf5::OutNode;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A field of a compound dataset: the type in the file and the bytes of all rows, one after another.
struct Field {
  std::string name;
  Handle type;
  std::vector<char> bytes;
};

template <class T>
Field field(const std::string& name, hid_t type, const std::vector<T>& values) {
  const auto* first = reinterpret_cast<const char*>(values.data());
  return {name, Handle(H5Tcopy(type)), {first, first + values.size() * sizeof(T)}};
}

// Texts of `width` bytes, filled up with zeros as numpy does.
Field texts(const std::string& name, size_t width, const std::vector<std::string>& values) {
  Field result{name, Handle(H5Tcopy(H5T_C_S1)), {}};
  H5Tset_size(result.type.get(), width);
  H5Tset_strpad(result.type.get(), H5T_STR_NULLPAD);
  for (const std::string& value : values) {
    std::string padded = value;
    padded.resize(width);
    result.bytes.insert(result.bytes.end(), padded.begin(), padded.end());
  }
  return result;
}

// Texts of any length; `values` must outlive the writing.
Field long_texts(const std::string& name, const std::vector<const char*>& values) {
  Field result = field(name, H5T_C_S1, values);
  H5Tset_size(result.type.get(), H5T_VARIABLE);
  return result;
}

Field booleans(const std::string& name, const std::vector<int8_t>& values) {
  Field result = field(name, H5T_STD_I8LE, values);
  result.type = Handle(H5Tenum_create(H5T_STD_I8LE));
  const int8_t no = 0, yes = 1;
  H5Tenum_insert(result.type.get(), "FALSE", &no);
  H5Tenum_insert(result.type.get(), "TRUE", &yes);
  return result;
}

// One dimension of `rows` records, packed as numpy packs them.
void add_table(const OutNode& parent, const std::string& name, size_t rows,
               const std::vector<Field>& fields, int gzip = 0) {
  size_t bytes = 0;
  for (const Field& f : fields) bytes += H5Tget_size(f.type.get());
  const Handle record(H5Tcreate(H5T_COMPOUND, bytes));
  std::vector<char> values(rows * bytes);
  size_t offset = 0;
  for (const Field& f : fields) {
    const size_t size = H5Tget_size(f.type.get());
    ASSERT_EQ(f.bytes.size(), rows * size) << f.name;
    ASSERT_GE(H5Tinsert(record.get(), f.name.c_str(), offset, f.type.get()), 0);
    for (size_t row = 0; row < rows; ++row)
      std::memcpy(&values[row * bytes + offset], &f.bytes[row * size], size);
    offset += size;
  }
  const hsize_t count = rows, chunk = std::min<hsize_t>(rows, 2);
  const Handle space(H5Screate_simple(1, &count, nullptr));
  const Handle create(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_chunk(create.get(), 1, &chunk);
  if (gzip > 0) H5Pset_deflate(create.get(), static_cast<unsigned>(gzip));
  const Handle made(H5Dcreate2(parent.id(), name.c_str(), record.get(), space.get(), H5P_DEFAULT,
                               create.get(), H5P_DEFAULT));
  ASSERT_GE(H5Dwrite(made.get(), record.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
}

// Three cells and two genes. `more` adds the rest to a file that has no uns and no matrix.
std::string write_old(const std::string& path, const std::vector<Field>& cells,
                      const std::vector<Field>& genes,
                      const std::function<void(OutNode&)>& more = {}) {
  OutFile file(path, path);
  {
    OutNode root = OutNode::root(file);
    add_table(root, "obs", 3, cells, 4);
    add_table(root, "var", 2, genes);
    if (more) more(root);
  }
  file.close();
  return path;
}

std::vector<Field> named(const std::vector<std::string>& names, std::vector<Field> more = {}) {
  std::vector<Field> fields;
  fields.push_back(texts("index", 6, names));
  for (Field& f : more) fields.push_back(std::move(f));
  return fields;
}
const std::vector<std::string> kCells = {"cell-0", "c1", "c2"}, kGenes = {"G0", "G1"};

template <class... F>
std::vector<Field> fields_of(F... f) {
  std::vector<Field> fields;
  (fields.push_back(std::move(f)), ...);
  return fields;
}

Strings values_of(const Frame& frame, const std::string& name) {
  const Column column = frame.read(name);
  Strings values;
  for (int64_t row = 0; row < column.size(); ++row)
    values.push_back(column.is_missing(row) ? "missing" : column.text(row));
  return values;
}

TEST(CompoundFrame, ReadsEveryFieldType) {
  TemporaryFolder folder;
  const H5ad file = H5ad::open(write_old(
      folder / "a.h5ad",
      named(kCells, fields_of(field<float>("f32", H5T_IEEE_F32LE, {0.5f, NAN, -2}),
                              field<double>("f64", H5T_IEEE_F64LE, {0.1, 1e300, -2}),
                              field<int8_t>("i8", H5T_STD_I8LE, {-128, 0, 127}),
                              field<uint16_t>("u16", H5T_STD_U16LE, {0, 1, 65535}),
                              field<int64_t>("i64", H5T_STD_I64LE, {INT64_MIN, 0, INT64_MAX}),
                              booleans("flag", {1, 0, 1}), texts("text", 3, {"abc", "", "d"}),
                              long_texts("long", {"a longer text", "", "\xC3\xA9"}))),
      named(kGenes)));
  const Frame& obs = file.obs();
  EXPECT_TRUE(obs.is_compound());
  EXPECT_EQ(obs.index_name(), "index");
  EXPECT_EQ(obs.index(), kCells);
  EXPECT_EQ(file.var().index(), kGenes);
  EXPECT_THAT(file.var().columns(), IsEmpty());
  EXPECT_THAT(obs.columns(), ElementsAre("f32", "f64", "i8", "u16", "i64", "flag", "text", "long"));
  EXPECT_THAT(values_of(obs, "f32"), ElementsAre("0.5", "nan", "-2.0"));
  EXPECT_THAT(values_of(obs, "f64"), ElementsAre("0.1", "1e+300", "-2.0"));
  EXPECT_THAT(values_of(obs, "i8"), ElementsAre("-128", "0", "127"));
  EXPECT_THAT(values_of(obs, "u16"), ElementsAre("0", "1", "65535"));
  EXPECT_THAT(values_of(obs, "i64"),
              ElementsAre("-9223372036854775808", "0", "9223372036854775807"));
  EXPECT_THAT(values_of(obs, "flag"), ElementsAre("True", "False", "True"));
  EXPECT_THAT(values_of(obs, "text"), ElementsAre("abc", "", "d"));
  EXPECT_THAT(values_of(obs, "long"), ElementsAre("a longer text", "", "\xC3\xA9"));
  EXPECT_EQ(obs.info("f32").stored, "float32");
  EXPECT_EQ(obs.info("flag").kind, ColumnKind::boolean);
  EXPECT_EQ(obs.info("long").kind, ColumnKind::string);
  expect_data_error("E-NO-COLUMN", "f32, f64", [&] { obs.read("index"); });
}

TEST(CompoundFrame, LabelsComeFromUns) {
  TemporaryFolder folder;
  const H5ad file = H5ad::open(write_old(
      folder / "a.h5ad",
      named(kCells, fields_of(field<int8_t>("type", H5T_STD_I8LE, {1, -1, 0}),
                              field<int16_t>("batch", H5T_STD_I16LE, {0, 0, 0}),
                              field<int8_t>("shared", H5T_STD_I8LE, {0, 1, 2}),
                              field<int8_t>("n", H5T_STD_I8LE, {0, 1, 0}),
                              field<int8_t>("low", H5T_STD_I8LE, {0, -2, 0}),
                              field<float>("real", H5T_IEEE_F32LE, {0, 1, 0}))),
      named(kGenes, fields_of(field<int8_t>("shared", H5T_STD_I8LE, {1, 0}))), [](OutNode& root) {
        OutNode uns = root.add_group("uns", "dict", "0.1.0");
        uns.add_strings("type_categories", std::vector<std::string>{"T", "B"});
        uns.add_text("batch_categories", "only");  // a single one
        uns.add_strings("shared_categories", std::vector<std::string>{"p", "q"});
        uns.add_array("n_categories", std::vector<int64_t>{10, 20});
        uns.add_strings("low_categories", std::vector<std::string>{"x"});
        uns.add_strings("real_categories", std::vector<std::string>{"x", "y"});
        uns.add_strings("other_categories", std::vector<std::string>{"x", "y"});
        uns.add_text("title", "mine");
      }));
  const Frame &obs = file.obs(), &var = file.var();
  EXPECT_THAT(values_of(obs, "type"), ElementsAre("B", "missing", "T"));
  EXPECT_THAT(std::get<Categorical>(obs.read("type").values).categories, ElementsAre("T", "B"));
  EXPECT_EQ(obs.info("type").kind, ColumnKind::categorical);
  EXPECT_THAT(values_of(obs, "batch"), ElementsAre("only", "only", "only"));
  EXPECT_THAT(values_of(obs, "n"), ElementsAre("10", "20", "10"));
  // One of the codes of obs has no label, so the labels are those of var.
  EXPECT_EQ(obs.info("shared").kind, ColumnKind::integer);
  EXPECT_THAT(values_of(obs, "shared"), ElementsAre("0", "1", "2"));
  EXPECT_THAT(values_of(var, "shared"), ElementsAre("q", "p"));
  expect_data_error("E-H5AD-CODE", "row 1 has code -2", [&] { obs.read("low"); });
  EXPECT_EQ(obs.info("real").kind, ColumnKind::real);
  EXPECT_THAT(file.uns_keys(), ElementsAre("other_categories", "real_categories", "title"));
}

TEST(CompoundFrame, ATableOfAnotherKindIsNamed) {
  TemporaryFolder folder;
  const auto with = [&](const char* name, const std::function<void(OutNode&)>& add) {
    const std::string path = write_h5ad(folder / name, 3, 2, [&](OutNode& root) {
      root.remove("obs");
      add(root);
    });
    return [path] { H5ad::open(path); };
  };
  expect_data_error("E-H5AD-LAYOUT", "/obs: a table was wanted",
                    with("numbers.h5ad", [](OutNode& root) {
                      root.add_array("obs", std::vector<double>{1, 2, 3});
                    }));
  const H5ad odd = H5ad::open(write_old(
      folder / "odd.h5ad",
      named(kCells, fields_of(field<int64_t>("date", H5T_STD_B64LE, {1, 2, 3}))), named(kGenes)));
  EXPECT_EQ(odd.obs().info("date").kind, ColumnKind::other);
  expect_data_error("E-H5AD-LAYOUT", "/obs/date: holds other values",
                    [&] { odd.obs().read("date"); });
}

OutNode add_h5sparse(OutNode& parent, const std::string& name, const char* format) {
  const bool csr = std::string(format) == "csr";
  OutNode group = parent.add_group(name, "", "");
  H5Adelete(group.id(), "encoding-type");
  H5Adelete(group.id(), "encoding-version");
  group.set_text("h5sparse_format", format);
  const int64_t shape[] = {3, 2};
  group.set_integers("h5sparse_shape", shape);
  group.add_array("data", std::vector<float>{1, 2, 3});
  group.add_array("indices", csr ? std::vector<int32_t>{1, 0, 1} : std::vector<int32_t>{1, 0, 2});
  group.add_array("indptr", csr ? std::vector<int32_t>{0, 1, 2, 3} : std::vector<int32_t>{0, 1, 3});
  return group;
}

TEST(H5Sparse, BothOrdersAreRead) {
  TemporaryFolder folder;
  const H5ad file =
      H5ad::open(write_old(folder / "a.h5ad", named(kCells), named(kGenes), [](OutNode& root) {
        add_h5sparse(root, "X", "csr");
        OutNode layers = root.add_group("layers", "dict", "0.1.0");
        add_h5sparse(layers, "columns", "csc");
        add_h5sparse(layers, "odd", "coo");
      }));
  EXPECT_EQ(file.slot("X").format, MatrixFormat::csr);
  EXPECT_EQ(file.slot("columns").format, MatrixFormat::csc);
  EXPECT_EQ(file.slot("odd").format, MatrixFormat::none);
  EXPECT_THAT(dense(file, "X"), ElementsAre(0, 1, 2, 0, 0, 3));
  EXPECT_THAT(dense(file, "columns"), ElementsAre(0, 2, 1, 0, 0, 3));
  const std::string wrong =
      write_old(folder / "b.h5ad", named(kCells), named(kGenes), [](OutNode& root) {
        const int64_t shape[] = {3, 2, 1};
        add_h5sparse(root, "X", "csr").set_integers("h5sparse_shape", shape);
      });
  expect_data_error("E-H5AD-LAYOUT", "attribute h5sparse_shape should hold 2 integers, it holds 3",
                    [&] { H5ad::open(wrong); });
}

TEST(RawBesideX, HasItsOwnGenes) {
  TemporaryFolder folder;
  const auto raw = [](OutNode& root) {
    const int64_t shape[] = {3, 1};
    root.add_array<float>("raw.X", shape, std::vector<float>{7, 8, 9});
  };
  const H5ad file =
      H5ad::open(write_old(folder / "a.h5ad", named(kCells), named(kGenes), [&](OutNode& root) {
        raw(root);
        add_table(root, "raw.var", 1, fields_of(texts("index", 4, {"only"})));
      }));
  EXPECT_TRUE(file.has_raw());
  EXPECT_EQ(file.slot("raw").path, "raw.X");
  EXPECT_THAT(dense(file, "raw"), ElementsAre(7, 8, 9));
  EXPECT_THAT(file.var_of(file.slot("raw")).index(), ElementsAre("only"));
  const std::string no_genes = write_old(folder / "b.h5ad", named(kCells), named(kGenes), raw);
  expect_data_error("E-H5AD-MISSING", "no raw.var", [&] { H5ad::open(no_genes); });
  const std::string both =
      write_old(folder / "c.h5ad", named(kCells), named(kGenes), [&](OutNode& root) {
        raw(root);
        root.add_group("raw", "raw", "0.1.0");
      });
  expect_data_error("E-H5AD-LAYOUT", "raw both as a group and", [&] { H5ad::open(both); });
}

// Arrays inside the fields of obsm, and labels and columns of every kind.
std::string write_whole(const std::string& path) {
  return write_old(
      path,
      named(kCells, fields_of(field<int8_t>("type", H5T_STD_I8LE, {1, -1, 0}),
                              field<float>("f32", H5T_IEEE_F32LE, {0.5f, NAN, -2}),
                              field<int16_t>("i16", H5T_STD_I16LE, {1, 2, 3}),
                              booleans("flag", {1, 0, 1}), texts("text", 3, {"abc", "", "d"}))),
      named(kGenes, fields_of(field<int8_t>("kind", H5T_STD_I8LE, {0, 0}),
                              field<double>("mean", H5T_IEEE_F64LE, {0.1, 0.2}))),
      [](OutNode& root) {
        OutNode uns = root.add_group("uns", "dict", "0.1.0");
        uns.add_strings("type_categories", std::vector<std::string>{"T", "B"});
        uns.add_strings("kind_categories", std::vector<std::string>{"gene"});
        uns.add_text("title", "mine");
        const hsize_t two = 2;
        const Handle pairs(H5Tarray_create2(H5T_IEEE_F32LE, 1, &two));
        const Handle wide(H5Tarray_create2(H5T_IEEE_F64LE, 1, &two));
        add_table(root, "obsm", 3,
                  fields_of(field<float>("X_pca", pairs.get(), {1, 2, 3, 4, 5, 6}),
                            field<double>("X_umap", wide.get(), {.1, .2, .3, .4, .5, .6})));
        add_table(root, "varm", 2, fields_of(field<float>("PCs", pairs.get(), {1, 2, 3, 4})));
        add_h5sparse(root, "X", "csr");
      });
}

TEST(CompoundObsm, HoldsArrays) {
  TemporaryFolder folder;
  const H5ad file = H5ad::open(write_whole(folder / "a.h5ad"));
  EXPECT_THAT(file.obsm_keys(), ElementsAre("X_pca", "X_umap"));
  EXPECT_EQ(file.obsm("X_pca").dim, 2);
  EXPECT_THAT(file.obsm("X_pca").values, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(file.obsm("X_umap").values, ElementsAre(.1f, .2f, .3f, .4f, .5f, .6f));
  expect_data_error("E-H5AD-MISSING", "obsm/ghost", [&] { file.obsm("ghost"); });
  const hdf5::Node pca = file.root().child("obsm").field("X_pca");
  EXPECT_THAT(pca.shape(), ElementsAre(3, 2));
  std::vector<float> middle(2);
  pca.read_rows<float>(1, 1, middle);
  EXPECT_THAT(middle, ElementsAre(3, 4));
  EXPECT_THAT(pca.with_cache(1 << 20).read_all<float>(), ElementsAre(1, 2, 3, 4, 5, 6));
}

// A copy takes new columns, so its tables are in the current layout; nothing of them is lost.
TEST(CompoundTables, ACopyHasTheCurrentLayout) {
  TemporaryFolder folder;
  H5adWriter out(write_whole(folder / "in.h5ad"), folder / "out.h5ad", Overwrite::refuse);
  EXPECT_TRUE(out.has_obs("type"));
  out.add_categorical("label", std::vector<int32_t>{0, 1, 0}, {"a", "b"});
  out.add_var_booleans("in_model", std::vector<uint8_t>{1, 0});
  out.add_obsm("X_new", 1, std::vector<float>{7, 8, 9});
  out.commit();

  const H5ad old = H5ad::open(folder / "in.h5ad"), file = H5ad::open(folder / "out.h5ad");
  EXPECT_FALSE(file.obs().is_compound());
  EXPECT_FALSE(file.var().is_compound());
  EXPECT_EQ(file.obs().index(), kCells);
  EXPECT_EQ(file.var().index(), kGenes);
  EXPECT_THAT(file.obs().columns(), ElementsAre("type", "f32", "i16", "flag", "text", "label"));
  EXPECT_THAT(file.var().columns(), ElementsAre("kind", "mean", "in_model"));
  for (const std::string& column : old.obs().columns()) {
    EXPECT_EQ(values_of(file.obs(), column), values_of(old.obs(), column));
    EXPECT_EQ(file.obs().info(column).kind, old.obs().info(column).kind) << column;
  }
  for (const std::string& column : old.var().columns())
    EXPECT_EQ(values_of(file.var(), column), values_of(old.var(), column));
  EXPECT_EQ(file.obs().info("f32").stored, "float32");
  EXPECT_EQ(file.var().info("mean").stored, "float64");
  EXPECT_THAT(file.uns_keys(), ElementsAre("title"));
  EXPECT_THAT(file.obsm_keys(), ElementsAre("X_new", "X_pca", "X_umap"));
  EXPECT_EQ(file.root().child("obsm/X_pca").type().name(), "float32");
  EXPECT_THAT(file.root().child("obsm/X_umap").read_all<double>(),
              ElementsAre(.1, .2, .3, .4, .5, .6));
  EXPECT_THAT(file.root().child("varm/PCs").shape(), ElementsAre(2, 2));
  EXPECT_EQ(dense(file, "X"), dense(old, "X"));
}

TEST(CompoundTables, ANameThatNoGroupCanHoldIsRefused) {
  TemporaryFolder folder;
  const std::string path = write_old(
      folder / "in.h5ad", named(kCells, fields_of(field<int8_t>("a/b", H5T_STD_I8LE, {1, 2, 3}))),
      named(kGenes));
  EXPECT_THAT(values_of(H5ad::open(path).obs(), "a/b"), ElementsAre("1", "2", "3"));
  expect_data_error("E-H5AD-LAYOUT", "/obs/a/b: a column with \"/\" in its name",
                    [&] { H5adWriter(path, folder / "out.h5ad", Overwrite::refuse); });
}

}  // namespace
}  // namespace scgraft
