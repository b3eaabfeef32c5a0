// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_facts.h"

#include <cmath>
#include <limits>

#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

constexpr int64_t kCells = 6;
constexpr int64_t kGenes = 5;

std::vector<float> counts() {
  std::vector<float> x;
  for (int i = 0; i < kCells * kGenes; ++i) x.push_back(static_cast<float>(i * 7 % 11));
  return x;
}
// Every cell divided by its total, times `target`; logged when wanted.
std::vector<float> normalised(double target, bool logged) {
  std::vector<float> x = counts();
  for (int64_t cell = 0; cell < kCells; ++cell) {
    double total = 0;
    for (int64_t g = 0; g < kGenes; ++g) total += x[static_cast<size_t>(cell * kGenes + g)];
    for (int64_t g = 0; g < kGenes; ++g) {
      float& value = x[static_cast<size_t>(cell * kGenes + g)];
      const double scaled = value * target / total;
      value = static_cast<float>(logged ? std::log1p(scaled) : scaled);
    }
  }
  return x;
}
std::vector<float> scaled() {
  std::vector<float> x = counts();
  for (float& value : x) value = (value - 5) / 3;
  return x;
}

void add_matrix(hdf5::OutNode& parent, const std::string& name, const std::vector<float>& x) {
  const int64_t shape[] = {kCells, kGenes};
  parent.add_array<float>(name, shape, std::span<const float>(x));
}

class H5adFactsTest : public ::testing::Test {
 protected:
  struct Slots {
    std::vector<float> x, raw;
    std::vector<std::pair<std::string, std::vector<float>>> layers;
  };
  H5ad write(const Slots& slots) {
    return H5ad::open(
        write_h5ad(folder_ / cat(files_++, ".h5ad"), kCells, kGenes, [&](hdf5::OutNode& root) {
          if (!slots.x.empty()) add_matrix(root, "X", slots.x);
          if (!slots.layers.empty()) {
            hdf5::OutNode layers = root.add_group("layers", "dict", "0.1.0");
            for (const auto& [name, x] : slots.layers) add_matrix(layers, name, x);
          }
          if (!slots.raw.empty()) {
            hdf5::OutNode raw = root.add_group("raw", "raw", "0.1.0");
            add_frame(raw, "var", kGenes, "gene");
            add_matrix(raw, "X", slots.raw);
          }
        }));
  }
  ValueFacts facts_of(const std::vector<float>& x) {
    const H5ad file = write({.x = x, .raw = {}, .layers = {}});
    return value_facts(file, file.slot("X"));
  }

  TemporaryFolder folder_;
  int files_ = 0;
};

TEST_F(H5adFactsTest, ToldByTheNumbers) {
  EXPECT_EQ(facts_of(counts()).kind, ValueKind::counts);
  EXPECT_EQ(facts_of(scaled()).kind, ValueKind::scaled);
  EXPECT_EQ(facts_of(normalised(1e4, false)).kind, ValueKind::other);
  EXPECT_EQ(facts_of(normalised(1, false)).kind, ValueKind::other);  // shares: below 20, no log
  std::vector<float> broken = counts();
  broken[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(facts_of(broken).kind, ValueKind::other);
  EXPECT_EQ(facts_of({}).kind, ValueKind::none);
  EXPECT_EQ(facts_of(std::vector<float>(kCells * kGenes, 0)).kind, ValueKind::counts);
}

TEST_F(H5adFactsTest, TheTotalBehindLog1pIsFoundWhereCellsAgree) {
  const ValueFacts facts = facts_of(normalised(1e4, true));
  EXPECT_EQ(facts.kind, ValueKind::log1p);
  ASSERT_TRUE(facts.target_sum.has_value());
  EXPECT_NEAR(*facts.target_sum, 1e4, 1);
  EXPECT_EQ(facts.rows, kCells);

  std::vector<float> part = normalised(1e4, true);  // a gene less: totals differ
  for (int64_t cell = 0; cell < kCells; ++cell) part[static_cast<size_t>(cell * kGenes)] = 0;
  EXPECT_EQ(facts_of(part).kind, ValueKind::log1p);
  EXPECT_FALSE(facts_of(part).target_sum.has_value());
}

TEST_F(H5adFactsTest, CountsArePreferredWhereverTheyAre) {
  const auto chosen = [&](const Slots& slots) { return choose_slot(write(slots), "auto").slot; };
  const std::vector<float> log = normalised(1e4, true);
  EXPECT_EQ(chosen({counts(), counts(), {{"counts", counts()}}}), "X");
  EXPECT_EQ(chosen({log, counts(), {{"a", counts()}, {"counts", counts()}}}), "layers/counts");
  EXPECT_EQ(chosen({log, counts(), {{"a", counts()}}}), "layers/a");
  EXPECT_EQ(chosen({log, counts(), {{"a", log}}}), "raw/X");
  EXPECT_EQ(chosen({scaled(), log, {{"a", log}}}), "raw/X");
  EXPECT_EQ(chosen({scaled(), {}, {{"a", log}}}), "layers/a");
  EXPECT_EQ(chosen({log, log, {}}), "X");
  EXPECT_EQ(chosen({normalised(1e6, false), log, {}}), "raw/X");
  EXPECT_EQ(chosen({normalised(1e6, false), {}, {}}), "X");
}

TEST_F(H5adFactsTest, TheReasonSaysWhatIsUsedAndWhatIsNot) {
  const SlotChoice choice =
      choose_slot(write({normalised(1e4, true), {}, {{"counts", counts()}}}), "auto");
  EXPECT_THAT(choice.reason,
              ::testing::HasSubstr("X holds log1p values, so layers/counts is used"));
  EXPECT_THAT(choice.reason, ::testing::HasSubstr("all whole numbers"));
  EXPECT_EQ(choice.facts.kind, ValueKind::counts);
  EXPECT_THAT(choose_slot(write({normalised(1e4, true), {}, {}}), "X").reason,
              ::testing::HasSubstr("normalised to 10000"));
}

TEST_F(H5adFactsTest, OnlyScaledValuesAreRefused) {
  const H5ad file = write({scaled(), {}, {{"z", scaled()}}});
  expect_data_error("E-VALUES-SCALED", "layers/z: scaled", [&] { choose_slot(file, "auto"); });
  expect_data_error("E-VALUES-SCALED", "X: scaled", [&] { choose_slot(file, "X"); });
  expect_data_error("E-VALUES-NONE", "none that can be read",
                    [&] { choose_slot(write({}), "auto"); });
  expect_data_error("E-VALUES-NONE", "no matrix", [&] { choose_slot(write({}), "X"); });
  expect_data_error("E-NO-SLOT", "missing", [&] { choose_slot(file, "missing"); });
}

TEST_F(H5adFactsTest, GeneNamesAreTold) {
  const auto kind = [](const Strings& names) { return gene_id_kind(names); };
  EXPECT_EQ(kind({"CD3D", "HLA-A", "RP11-34P13.7", "MT-CO1"}), GeneIdKind::symbol);
  EXPECT_EQ(kind({"ENSG00000167286", "ENSG00000198851.10", "ENSMUSG00000032094"}),
            GeneIdKind::ensembl);
  EXPECT_EQ(kind({"ENST00000167286", "ENSG0000016728", "ENSG00000198851."}), GeneIdKind::other);
  EXPECT_EQ(kind({"915", "916", "1000"}), GeneIdKind::other);
  EXPECT_EQ(kind({"1007_s_at", "AFFX-BioB_at"}), GeneIdKind::other);
  EXPECT_EQ(kind({}), GeneIdKind::other);
}

TEST_F(H5adFactsTest, RealFiles) {
  struct Case {
    const char* path;
    const char* slot;
    ValueKind kind;
    GeneIdKind genes;
  };
  for (const Case& c :
       {Case{"data/pbmc68k_reduced.h5ad", "raw/X", ValueKind::log1p, GeneIdKind::symbol},
        Case{"data/pbmc8k_hvg200_counts.h5ad", "X", ValueKind::counts, GeneIdKind::symbol},
        Case{"data/zheng68k_165cells_counts.h5ad", "X", ValueKind::counts, GeneIdKind::symbol},
        Case{"data/kang_ifnb_valid_current.h5ad", "X", ValueKind::log1p, GeneIdKind::symbol},
        Case{"data/sc_mixology/sc_mixology_3plates.h5ad", "X", ValueKind::counts,
             GeneIdKind::ensembl}}) {
    SCOPED_TRACE(c.path);
    SCGRAFT_NEEDS_SHARED(c.path);
    const H5ad file = H5ad::open(shared_path(c.path));
    const SlotChoice choice = choose_slot(file, "auto");
    EXPECT_EQ(choice.slot, c.slot);
    EXPECT_EQ(choice.facts.kind, c.kind) << choice.reason;
    EXPECT_EQ(gene_id_kind(file.var_of(file.slot(choice.slot)).index()), c.genes);
  }
}

}  // namespace
}  // namespace scgraft
