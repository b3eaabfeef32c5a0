// SPDX-License-Identifier: Apache-2.0
#include "training/labelled_data.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "runtime/log.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/training/tiny_study.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

// A file with two columns of obs; "-" stands for a missing value.
std::string labelled_file(const std::string& path, const std::vector<std::string>& type,
                          const std::vector<std::string>& donor) {
  const auto column = [](const std::string& name, const std::vector<std::string>& values) {
    Categorical c;
    for (const std::string& v : std::set<std::string>(values.begin(), values.end()))
      if (v != "-") c.categories.push_back(v);
    for (const std::string& v : values) {
      const auto at = std::find(c.categories.begin(), c.categories.end(), v);
      c.codes.push_back(v == "-" ? -1 : static_cast<int32_t>(at - c.categories.begin()));
    }
    return Column{.name = name, .values = c, .missing = {}};
  };
  H5adCreator file(path, Overwrite::refuse);
  file.append_var({.index = {"g"}, .columns = {}});
  Table obs{.index = {}, .columns = {column("type", type), column("donor", donor)}};
  SparseRows rows{.first_row = 0, .columns = 1, .offsets = {0}, .column = {}, .value = {}};
  for (size_t i = 0; i < type.size(); ++i) {
    obs.index.push_back(cat("c", i));
    rows.column.push_back(0);
    rows.value.push_back(1);
    rows.offsets.push_back(static_cast<int64_t>(i) + 1);
  }
  file.append_obs(obs);
  file.append_rows(rows);
  file.commit();
  return path;
}

class LabelledDataTest : public ::testing::Test {
 protected:
  LabelledDataTest() {
    set_log_callback([this](LogLevel, const std::string& code, const std::string& text) {
      if (!code.empty()) warnings_.push_back(code + ": " + text);
    });
    data_.label_key = "type";
  }
  ~LabelledDataTest() override { set_log_callback(nullptr); }

  TemporaryFolder folder_;
  RunConfig::Data data_;
  std::vector<std::string> warnings_;
  const std::vector<std::string> type_ = {"B", "T", "-", "NK", "T", "B", "T"};
  const std::vector<std::string> donor_ = {"d2", "d1", "d1", "d1", "-", "d2", "d2"};
  const H5ad file_ = H5ad::open(labelled_file(folder_ / "f.h5ad", type_, donor_));
};

TEST_F(LabelledDataTest, TakesTheCellsThatHaveALabel) {
  const CellSelection cells = select_labelled_cells(file_, data_);
  EXPECT_EQ(cells.labels, (std::vector<std::string>{"B", "NK", "T"}));
  EXPECT_EQ(cells.rows, (std::vector<int64_t>{0, 1, 3, 4, 5, 6}));
  EXPECT_EQ(cells.label, (std::vector<int32_t>{0, 2, 1, 2, 0, 2}));
  EXPECT_TRUE(cells.group.empty());
  ASSERT_EQ(warnings_.size(), 1U);
  EXPECT_THAT(warnings_[0], HasSubstr("W-LABEL-RARE"));
  EXPECT_THAT(warnings_[0], HasSubstr("NK (1)"));
}

TEST_F(LabelledDataTest, GroupsFollowTheirCells) {
  data_.split_by = "donor";
  EXPECT_EQ(select_labelled_cells(file_, data_).group, (std::vector<int32_t>{1, 0, 0, -1, 1, 1}));
}

TEST_F(LabelledDataTest, LeavesOutExcludedLabelsAndOtherSubsets) {
  data_.exclude_labels = {"NK"};
  CellSelection cells = select_labelled_cells(file_, data_);
  EXPECT_EQ(cells.labels, (std::vector<std::string>{"B", "T"}));
  EXPECT_EQ(cells.rows, (std::vector<int64_t>{0, 1, 4, 5, 6}));
  data_.subset = "donor=d2";
  cells = select_labelled_cells(file_, data_);
  EXPECT_EQ(cells.rows, (std::vector<int64_t>{0, 5, 6}));
  EXPECT_EQ(cells.label, (std::vector<int32_t>{0, 0, 1}));
}

TEST_F(LabelledDataTest, KnownClassesDecideTheNumbers) {
  const CellSelection cells = select_labelled_cells(file_, data_, {"T", "Mono", "B"});
  EXPECT_EQ(cells.labels, (std::vector<std::string>{"T", "Mono", "B"}));
  EXPECT_EQ(cells.rows, (std::vector<int64_t>{0, 1, 4, 5, 6})) << "NK is not among the classes";
  EXPECT_EQ(cells.label, (std::vector<int32_t>{2, 0, 0, 2, 0}));
}

TEST_F(LabelledDataTest, NamesWhatIsWrong) {
  const auto fails = [&](const char* code, const char* says) {
    expect_data_error(code, says, [&] { select_labelled_cells(file_, data_); });
  };
  data_.label_key = "nothing";
  fails("E-NO-COLUMN", "type");
  data_.label_key = "type";
  data_.exclude_labels = {"B", "NK"};
  fails("E-LABELS", "gives 1 classes over 3 cells");
  data_.exclude_labels = {};
  data_.subset = "donor=d9";
  fails("E-SUBSET", "d1, d2");
  data_.subset = "donor";
  EXPECT_THROW(select_labelled_cells(file_, data_), ConfigError);
  data_.subset = "nothing=1";
  fails("E-NO-COLUMN", "donor");
}

TEST_F(LabelledDataTest, ASubsetKeepsTheCellsOfOneValue) {
  EXPECT_EQ(rows_of_subset(file_, ""), std::vector<uint8_t>(7, 1));
  EXPECT_EQ(rows_of_subset(file_, "donor=d1"), (std::vector<uint8_t>{0, 1, 1, 1, 0, 0, 0}));
}

TEST(GeneColumns, FindsEachGeneOnce) {
  EXPECT_EQ(gene_columns({"c", "x", "a", "c"}, {"a", "b", "c"}),
            (std::vector<int32_t>{2, -1, 0, -1}));
}

TEST(ReadCells, SomeRowsAreThoseOfTheWholeFile) {
  TinyStudy& study = TinyStudy::get();
  const H5ad file = H5ad::open(study.atlas());
  const auto model = open_cell_model(study.model());
  RunConfig config = study.config();
  const auto read = [&](const std::vector<int64_t>& rows) {
    CellData data;
    const auto reader = model->reader(study.ctx(), file, preparation_of(config, *model));
    read_cells(*reader, file, rows, {}, data);
    return data;
  };
  std::vector<int64_t> all(static_cast<size_t>(file.n_obs()));
  std::iota(all.begin(), all.end(), 0);
  const std::vector<int64_t> some = {2, 3, 77, 119};
  const CellData whole = read(all), part = read(some);
  EXPECT_EQ(part.genes, file.var().index());
  ASSERT_EQ(part.tokens.size(), 4);
  ASSERT_EQ(part.expression.rows(), 4);
  for (size_t i = 0; i < some.size(); ++i) {
    const CellView a = part.tokens.view(static_cast<int64_t>(i)), b = whole.tokens.view(some[i]);
    EXPECT_EQ(a.cell, some[i]);
    EXPECT_TRUE(std::equal(a.genes.begin(), a.genes.end(), b.genes.begin(), b.genes.end()));
    EXPECT_TRUE(std::equal(a.values.begin(), a.values.end(), b.values.begin(), b.values.end()));
    const auto x = part.expression.values_of(static_cast<int64_t>(i));
    const auto y = whole.expression.values_of(some[i]);
    EXPECT_TRUE(std::equal(x.begin(), x.end(), y.begin(), y.end()));
  }
}

TEST(ReadCells, ASecondFileIsPutIntoTheColumnsOfTheFirst) {
  TinyStudy& study = TinyStudy::get();
  Cells turned(study.atlas());
  std::vector<size_t> order(turned.genes.size());
  std::iota(order.rbegin(), order.rend(), 0);
  turned.choose_genes(order);
  const H5ad first = H5ad::open(study.atlas());
  const H5ad second = H5ad::open(turned.write(study.fresh("turned.h5ad")));
  const auto model = open_cell_model(study.model());
  CellData data;
  const Preparation preparation = preparation_of(study.config(), *model);
  const std::vector<int64_t> rows = {5};
  for (const H5ad* file : {&first, &second})
    read_cells(*model->reader(study.ctx(), *file, preparation), *file, rows, {}, data);
  ASSERT_EQ(data.expression.rows(), 2);
  const auto a = data.expression.columns_of(0), b = data.expression.columns_of(1);
  EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  const auto x = data.expression.values_of(0), y = data.expression.values_of(1);
  EXPECT_TRUE(std::equal(x.begin(), x.end(), y.begin(), y.end()));
}

}  // namespace
}  // namespace scgraft
