// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_creator.h"

#include <gmock/gmock.h>

#include "tests/io/h5ad_fixture.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;

// Row i of `columns` genes holds i + 1 at gene i mod columns, and 0.5 at the last gene if i is odd.
SparseRows some_rows(int64_t first, int64_t count, int64_t columns = 5) {
  SparseRows rows{
      .first_row = first, .columns = columns, .offsets = {0}, .column = {}, .value = {}};
  for (int64_t i = first; i < first + count; ++i) {
    const auto gene = static_cast<int32_t>(i % columns);
    rows.column.push_back(gene);
    rows.value.push_back(static_cast<float>(i + 1));
    if (i % 2 == 1 && gene < columns - 1) {
      rows.column.push_back(static_cast<int32_t>(columns - 1));
      rows.value.push_back(0.5f);
    }
    rows.offsets.push_back(static_cast<int64_t>(rows.column.size()));
  }
  return rows;
}

Table some_cells(int64_t first, int64_t count) {
  Table table;
  Categorical type{.codes = {}, .categories = {"B", "T cell", "\xC3\xA9"}, .ordered = true};
  Strings note;
  Integers total;
  Reals score;
  Booleans flag;
  for (int64_t i = first; i < first + count; ++i) {
    table.index.push_back(cat("cell", i));
    type.codes.push_back(static_cast<int32_t>(i % 4) - 1);
    note.push_back(i % 3 == 0 ? "" : cat("note ", i));
    total.push_back((int64_t{1} << 40) + i);
    score.push_back(0.1 * static_cast<double>(i));
    flag.values.push_back(i % 2 == 0);
  }
  table.columns.push_back({.name = "type", .values = type, .missing = {}});
  table.columns.push_back({.name = "note", .values = note, .missing = {}});
  table.columns.push_back({.name = "total", .values = total, .missing = {}});
  table.columns.push_back({.name = "score", .values = score, .missing = {}});
  table.columns.push_back({.name = "flag", .values = flag, .missing = {}});
  return table;
}

Table some_genes(int64_t count = 5) {
  Table table;
  for (int64_t g = 0; g < count; ++g) table.index.push_back(cat("gene", g));
  return table;
}

std::string create(const std::string& path, int64_t cells, int64_t chunk,
                   H5adCreatorOptions options = {}) {
  H5adCreator out(path, Overwrite::refuse, options);
  for (int64_t first = 0; first < cells; first += chunk) {
    const int64_t count = std::min(chunk, cells - first);
    out.append_obs(some_cells(first, count));
    out.append_rows(some_rows(first, count));
  }
  out.append_var(some_genes());
  out.commit();
  return path;
}

void expect_sample(const std::string& path, int64_t cells) {
  const H5ad file = H5ad::open(path);
  EXPECT_EQ(file.n_obs(), cells);
  EXPECT_EQ(file.slot("X").format, MatrixFormat::csr);
  EXPECT_EQ(file.slot("X").dtype, "float32");
  EXPECT_THAT(file.obs().columns(), ElementsAre("type", "note", "total", "score", "flag"));
  EXPECT_TRUE(file.var().columns().empty());
  EXPECT_THAT(file.var().index(), ElementsAre("gene0", "gene1", "gene2", "gene3", "gene4"));
  EXPECT_EQ(file.obs().info("type").kind, ColumnKind::categorical);
  const Table want = some_cells(0, cells);
  EXPECT_EQ(file.obs().index(), want.index);
  for (const Column& column : want.columns) {
    const Column got = file.obs().read(column.name);
    ASSERT_EQ(got.values.index(), column.values.index()) << column.name;
    for (int64_t i = 0; i < cells; ++i) EXPECT_EQ(got.text(i), column.text(i)) << column.name;
  }
  EXPECT_TRUE(std::get<Categorical>(file.obs().read("type").values).ordered);
  SparseRows rows;
  RowReader(file, "X").read(0, cells, rows);
  const SparseRows all = some_rows(0, cells);
  EXPECT_EQ(rows.offsets, all.offsets);
  EXPECT_EQ(rows.column, all.column);
  EXPECT_EQ(rows.value, all.value);
}

TEST(H5adCreator, OnePieceOrManyGiveTheSame) {
  TemporaryFolder folder;
  expect_sample(create(folder / "one.h5ad", 23, 23), 23);
  expect_sample(create(folder / "many.h5ad", 23, 3), 23);
  expect_sample(create(folder / "single.h5ad", 23, 1, {.compression = {.gzip = 1}}), 23);
}

TEST(H5adCreator, RowPointersGrowWiderWhenTheyMust) {
  TemporaryFolder folder;
  const auto width = [](const std::string& path) {
    return H5ad::open(path).root().child("X/indptr").type().name();
  };
  EXPECT_EQ(width(create(folder / "narrow.h5ad", 23, 3)), "int32");
  const std::string wide = create(folder / "wide.h5ad", 23, 3, {.pointer_limit = 9});
  EXPECT_EQ(width(wide), "int64");
  expect_sample(wide, 23);
}

TEST(H5adCreator, CodesTakeTheSmallestTypeThatHoldsTheCategories) {
  TemporaryFolder folder;
  const auto stored = [&](int32_t categories) {
    const std::string path = folder / cat(categories, ".h5ad");
    Table cells{.index = {"a", "b"}, .columns = {}};
    Categorical type;
    for (int32_t k = 0; k < categories; ++k) type.categories.push_back(cat("t", k));
    type.codes = {categories - 1, -1};
    cells.columns.push_back({.name = "type", .values = type, .missing = {}});
    H5adCreator out(path, Overwrite::refuse);
    out.append_obs(cells);
    out.append_rows(some_rows(0, 2));
    out.append_var(some_genes());
    out.commit();
    const H5ad file = H5ad::open(path);
    EXPECT_EQ(file.obs().read("type").text(0), cat("t", categories - 1));
    EXPECT_TRUE(file.obs().read("type").is_missing(1));
    return file.root().child("obs/type/codes").type().name();
  };
  EXPECT_EQ(stored(127), "int8");
  EXPECT_EQ(stored(128), "int16");
  EXPECT_EQ(stored(32767), "int16");
  EXPECT_EQ(stored(32768), "int32");
}

TEST(H5adCreator, AnEmptyFileIsAFile) {
  TemporaryFolder folder;
  H5adCreator out(folder / "empty.h5ad", Overwrite::refuse);
  out.append_var(some_genes());
  out.commit();
  const H5ad file = H5ad::open(folder / "empty.h5ad");
  EXPECT_EQ(file.n_obs(), 0);
  EXPECT_EQ(file.n_vars(), 5);
  EXPECT_EQ(file.slot("X").stored, 0);
}

TEST(H5adCreator, NothingAppearsWithoutCommit) {
  TemporaryFolder folder;
  { H5adCreator out(folder / "a.h5ad", Overwrite::refuse); }
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
}

TEST(H5adCreator, RefusesPiecesThatDoNotFit) {
  TemporaryFolder folder;
  const auto refused = [&](const std::string& part, const std::function<void(H5adCreator&)>& add) {
    H5adCreator out(folder / "a.h5ad", Overwrite::refuse);
    out.append_obs(some_cells(0, 2));
    out.append_rows(some_rows(0, 2));
    try {
      add(out);
      ADD_FAILURE() << "nothing was thrown, wanted " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused("X has 5 columns, this piece 4", [](auto& out) { out.append_rows(some_rows(2, 1, 4)); });
  refused("X has 5 columns, var has 4 rows", [](auto& out) {
    out.append_var(some_genes(4));
    out.commit();
  });
  refused("X has 2 rows, obs has 3", [](auto& out) {
    out.append_obs(some_cells(2, 1));
    out.append_var(some_genes());
    out.commit();
  });
  refused("5 columns, this piece 4", [](auto& out) {
    Table table = some_cells(2, 1);
    table.columns.pop_back();
    out.append_obs(table);
  });
  refused("same categories", [](auto& out) {
    Table table = some_cells(2, 1);
    std::get<Categorical>(table.columns[0].values).categories.push_back("new");
    out.append_obs(table);
  });
  refused("code 3, there are 3", [](auto& out) {
    Table table = some_cells(2, 1);
    std::get<Categorical>(table.columns[0].values).codes[0] = 3;
    out.append_obs(table);
  });
  refused("values of the same kind", [](auto& out) {
    Table table = some_cells(2, 1);
    std::swap(table.columns[1], table.columns[2]);
    out.append_obs(table);
  });
  refused("missing values", [](auto& out) {
    Table table = some_cells(2, 1);
    table.columns[2].missing = {1};
    out.append_obs(table);
  });
  refused("has 2 values for 1 rows", [](auto& out) {
    Table table = some_cells(2, 1);
    std::get<Strings>(table.columns[1].values).push_back("more");
    out.append_obs(table);
  });
  refused("cannot have a column called a/b", [](auto& out) {
    Table table = some_genes();
    table.columns.push_back({.name = "a/b", .values = Integers(5), .missing = {}});
    out.append_var(table);
  });
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
}

TEST(H5adCreator, RefusesAnExistingFile) {
  TemporaryFolder folder;
  const std::string path = create(folder / "a.h5ad", 3, 3);
  EXPECT_THROW(H5adCreator(path, Overwrite::refuse), ConfigError);
  expect_sample(path, 3);
}

}  // namespace
}  // namespace scgraft
