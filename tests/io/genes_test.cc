// SPDX-License-Identifier: Apache-2.0
#include "io/genes.h"

#include "runtime/log.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Vocabulary vocabulary_of(const std::string& json) {
  return Vocabulary::parse(std::as_bytes(std::span(json)), "vocab.json");
}

class GenesTest : public ::testing::Test {
 protected:
  GenesTest() {
    set_log_callback([this](LogLevel, const std::string& code, const std::string& text) {
      logged_ += code + " " + text + "\n";
    });
  }
  ~GenesTest() override { set_log_callback(nullptr); }

  // A file whose genes have these names; `symbols` is a var column when not empty.
  H5ad write(const Strings& names, const Strings& symbols = {}) {
    const auto genes = static_cast<int64_t>(names.size());
    return H5ad::open(
        write_h5ad(folder_ / cat(files_++, ".h5ad"), 2, genes, [&](hdf5::OutNode& root) {
          const int64_t shape[] = {2, genes};
          root.add_array<float>("X", shape, std::vector<float>(names.size() * 2, 1.f));
          hdf5::OutNode var = root.child("var");
          var.remove("_index");
          var.add_strings("_index", names);
          if (symbols.empty()) return;
          var.set_texts("column-order", {"length", "feature_name"});
          var.add_array<int64_t>("length", std::vector<int64_t>(names.size(), 7));
          var.add_strings("feature_name", symbols);
        }));
  }
  static GeneMatch match(const H5ad& file, const std::string& key, const Vocabulary& vocabulary) {
    return match_genes(file, file.slot("X"), key, vocabulary);
  }

  TemporaryFolder folder_;
  int files_ = 0;
  std::string logged_;
  Vocabulary vocabulary_ =
      vocabulary_of(R"({"CD3D": 0, "LYZ": 1, "NKG7": 2, "<pad>": 3, "MS4A1": 4})");
};

TEST_F(GenesTest, ExactNamesGetTheirTokensAndTheFirstOfEqualNamesWins) {
  const H5ad file = write({"LYZ", "cd3d", "NKG7", "LYZ", "<pad>", "CD3D"});
  const GeneMatch m = match(file, "", vocabulary_);
  EXPECT_THAT(m.token, ElementsAre(1, -1, 2, -1, -1, 0));
  EXPECT_EQ(m.matched, 3);
  EXPECT_EQ(m.duplicates, 1);
  EXPECT_EQ(m.columns(), 6);
  EXPECT_DOUBLE_EQ(m.share(), 4.0 / 6);
  EXPECT_THAT(m.unmatched, ElementsAre("cd3d", "<pad>"));
  EXPECT_EQ(logged_, "");
}

TEST_F(GenesTest, FewKnownGenesAreAWarningThatNamesABetterColumn) {
  const H5ad file = write({"CD3D", "ENSG00000000002", "ENSG00000000003"}, {"CD3D", "LYZ", "NKG7"});
  EXPECT_EQ(match(file, "", vocabulary_).matched, 1);
  EXPECT_THAT(logged_, HasSubstr("W-GENE-LOW-MATCH only 1 of 3"));
  EXPECT_THAT(logged_, HasSubstr("ENSG00000000002, ENSG00000000003"));
  EXPECT_THAT(logged_, HasSubstr("--gene-key feature_name (3 genes are known there)"));
  logged_.clear();
  EXPECT_EQ(match(file, "feature_name", vocabulary_).matched, 3);
  EXPECT_EQ(logged_, "");
}

TEST_F(GenesTest, NoKnownGeneIsRefusedWithBothVocabulariesAndTheColumnThatFits) {
  const H5ad file = write({"ENSG00000000001", "ENSG00000000002"}, {"CD3D", "LYZ"});
  expect_data_error("E-GENE-NONE", "0 of 2 genes", [&] { match(file, "", vocabulary_); });
  try {
    match(file, "", vocabulary_);
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("ensembl ids such as ENSG00000000001, ENSG00000000002"));
    EXPECT_THAT(error.what(), HasSubstr("symbol ids such as CD3D, LYZ, NKG7"));
    EXPECT_EQ(error.hint(), "pass --gene-key feature_name (2 genes are known there)");
  }
  const H5ad hopeless = write({"ENSG00000000001"});
  try {
    match(hopeless, "", vocabulary_);
    ADD_FAILURE();
  } catch (const DataError& error) {
    EXPECT_THAT(error.hint(), HasSubstr("no column of var names genes"));
  }
}

TEST_F(GenesTest, AWrongKeyIsToldWhereTheGenesAre) {
  const H5ad file = write({"CD3D", "LYZ"}, {"a", "b"});
  try {
    match(file, "feature_name", vocabulary_);
    ADD_FAILURE();
  } catch (const DataError& error) {
    EXPECT_THAT(error.hint(), HasSubstr("leave --gene-key away"));
  }
  expect_data_error("E-NO-COLUMN", "symbols", [&] { match(file, "symbols", vocabulary_); });
  expect_data_error("E-GENE-KEY", "length", [&] { match(file, "length", vocabulary_); });
}

}  // namespace
}  // namespace scgraft
