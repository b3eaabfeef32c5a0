// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <set>

#include "io/json.h"
#include "io/vocabulary.h"
#include "model/numpy_random.h"
#include "model/scgpt/binning.h"
#include "model/scgpt/tokenizer.h"
#include "model/token_store.h"
#include "runtime/error.h"
#include "tests/model/npz.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr const char* kGolden = "golden/tok_scgpt_tokenize_pad/arrays.npz";

struct Padded {
  std::vector<int32_t> genes;
  std::vector<float> values;
};

// One recorded case: rows of X to tokens, cut to the recorded width by NumPy's legacy draws, padded
// as the original pads them.
struct RecordedCase {
  std::string name;
  bool zeros = false;
  bool cls = true;
};

Padded tokens_of(const Npz& npz, const Vocabulary& vocabulary, const RecordedCase& c, int64_t row,
                 size_t width, NumpyRandom& random) {
  const std::vector<float> x = npz["X"].row<float>(row);
  const std::vector<int32_t> ids = npz["gene_ids"].all<int32_t>();
  std::vector<int32_t> genes;
  std::vector<float> bins;
  for (size_t i = 0; i < x.size(); ++i)
    if (c.zeros || x[i] != 0) genes.push_back(ids[i]), bins.push_back(x[i]);
  const size_t room = width - (c.cls ? 1 : 0);
  if (genes.size() > room) {
    const std::vector<int32_t> order =
        random.sample(static_cast<int32_t>(genes.size()), static_cast<int32_t>(room));
    Padded cut;
    for (const int32_t i : order) {
      cut.genes.push_back(genes[static_cast<size_t>(i)]);
      cut.values.push_back(bins[static_cast<size_t>(i)]);
    }
    genes = cut.genes, bins = cut.values;
  }
  Padded out{std::vector<int32_t>(genes.size() + 1), std::vector<float>(genes.size() + 1)};
  tokenise(vocabulary.id("<cls>"), genes, bins, out.genes, out.values);
  if (!c.cls) out.genes.erase(out.genes.begin()), out.values.erase(out.values.begin());
  out.genes.resize(width, vocabulary.id("<pad>"));
  out.values.resize(width, -2.f);
  return out;
}

TEST(ScgptTokenizerTest, TokensAreTheRecordedOnes) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  const Vocabulary vocabulary =
      Vocabulary::open(shared_path("golden/tok_scgpt_tokenize_pad/vocab.json"));
  const nlohmann::json names =
      read_json(shared_path("golden/tok_scgpt_tokenize_pad/gene_names.json"), FileKind::data);
  const std::vector<int32_t> ids = npz["gene_ids"].all<int32_t>();
  for (size_t i = 0; i < ids.size(); ++i)
    EXPECT_EQ(vocabulary.find(names[i].get<std::string>()).value_or(vocabulary.id("<pad>")),
              ids[i]);

  for (const RecordedCase& c :
       {RecordedCase{"nz_long"}, RecordedCase{"nz_short"}, RecordedCase{"zeros_long", true},
        RecordedCase{"nocls_short", false, false}}) {
    SCOPED_TRACE(c.name);
    const Npz::Array genes = npz[c.name + "_genes"];
    const Npz::Array values = npz[c.name + "_values"];
    const Npz::Array masked = npz[c.name + "_masked"];
    NumpyRandom sampling(static_cast<uint32_t>(npz["seed_tokenize"].values[0]));
    NumpyRandom masking(static_cast<uint32_t>(npz["seed_mask"].values[0]));
    for (int64_t row = 0; row < genes.shape[0]; ++row) {
      Padded got =
          tokens_of(npz, vocabulary, c, row, static_cast<size_t>(genes.shape[1]), sampling);
      EXPECT_EQ(got.genes, genes.row<int32_t>(row)) << row;
      EXPECT_EQ(got.values, values.row<float>(row)) << row;
      // The original may hide <cls> too; only the draws are checked here.
      const auto length = static_cast<int32_t>(std::count_if(
          got.values.begin(), got.values.end(), [](float value) { return value != -2; }));
      for (const int32_t i : masking.sample(length, static_cast<int32_t>(0.4 * length)))
        got.values[static_cast<size_t>(i)] = -1;
      EXPECT_EQ(got.values, masked.row<float>(row)) << row;
    }
  }
}

// The published collator: bins everything but <cls>, whose value there is the padding's, and pads.
TEST(ScgptTokenizerTest, TheCollatorsTokensAreTheRecordedOnes) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  const Vocabulary vocabulary =
      Vocabulary::open(shared_path("golden/tok_scgpt_tokenize_pad/vocab.json"));
  const std::vector<int32_t> ids = npz["gene_ids"].all<int32_t>();
  NumpyRandom random(static_cast<uint32_t>(npz["seed_collator"].values[0]));
  BinningScratch scratch;
  const Npz::Array want_genes = npz["collator_gene"];
  const Npz::Array want_values = npz["collator_expr"];
  const std::vector<int64_t> cells = npz["collator_cells"].all<int64_t>();
  for (size_t row = 0; row < cells.size(); ++row) {
    const std::vector<float> counts = npz["collator_counts"].row<float>(cells[row]);
    std::vector<int32_t> genes;
    std::vector<float> bins;
    for (size_t i = 0; i < counts.size(); ++i)
      if (counts[i] != 0) genes.push_back(ids[i]), bins.push_back(counts[i]);
    std::vector<double> uniforms(bins.size());
    for (double& u : uniforms) u = random.uniform();
    bin_values(bins, 51, uniforms, bins, scratch);
    std::vector<int32_t> got_genes(genes.size() + 1);
    std::vector<float> got_values(genes.size() + 1);
    tokenise(vocabulary.id("<cls>"), genes, bins, got_genes, got_values);
    got_values[0] = -2;
    const auto width = static_cast<size_t>(want_genes.shape[1]);
    got_genes.resize(width, vocabulary.id("<pad>"));
    got_values.resize(width, -2.f);
    EXPECT_EQ(got_genes, want_genes.row<int32_t>(static_cast<int64_t>(row))) << row;
    EXPECT_EQ(got_values, want_values.row<float>(static_cast<int64_t>(row))) << row;
  }
}

TEST(ScgptTokenizerTest, ClsComesFirstWithValueZero) {
  std::vector<int32_t> genes(3);
  std::vector<float> values(3);
  tokenise(9, std::vector<int32_t>{4, 2}, std::vector<float>{7, 1}, genes, values);
  EXPECT_THAT(genes, ElementsAre(9, 4, 2));
  EXPECT_THAT(values, ElementsAre(0, 7, 1));
}

TEST(ScgptTokenizerTest, SamplesAreAscendingDistinctAndOwnedByTheCell) {
  std::vector<int32_t> kept;
  std::vector<int32_t> again;
  std::vector<int32_t> other;
  sample_genes(1, 5, 1000, 100, kept);
  sample_genes(1, 5, 1000, 100, again);
  sample_genes(1, 6, 1000, 100, other);
  EXPECT_EQ(kept, again);
  EXPECT_NE(kept, other);
  ASSERT_EQ(kept.size(), 100u);
  EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
  EXPECT_EQ(std::set<int32_t>(kept.begin(), kept.end()).size(), 100u);
}

TEST(ScgptTokenizerTest, EveryGeneIsSampledEquallyOften) {
  std::vector<int64_t> times(20, 0);
  std::vector<int32_t> kept;
  for (int64_t cell = 0; cell < 20000; ++cell) {
    sample_genes(7, cell, 20, 5, kept);
    for (const int32_t gene : kept) ++times[static_cast<size_t>(gene)];
  }
  // Binomial(20000, 1/4): standard deviation 61.
  for (const int64_t n : times) EXPECT_NEAR(static_cast<double>(n), 5000, 5 * 61.3);
}

TEST(ScgptTokenizerTest, MasksHideTheShareOfGenesAndNeverCls) {
  std::vector<float> values(101);
  std::iota(values.begin(), values.end(), 0.f);
  std::vector<float> hidden(101);
  std::vector<float> next_epoch(101);
  std::vector<uint8_t> masked(101);
  for (int64_t cell = 0; cell < 200; ++cell) {
    mask_values(values, {.ratio = 0.4, .mask_value = -1, .seed = 3}, 1, cell, next_epoch, masked);
    mask_values(values, {.ratio = 0.4, .mask_value = -1, .seed = 3}, 0, cell, hidden, masked);
    EXPECT_NE(hidden, next_epoch);
    EXPECT_EQ(std::accumulate(masked.begin(), masked.end(), 0), 40);
    EXPECT_EQ(masked[0], 0);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(hidden[i], masked[i] != 0 ? -1.f : values[i]);
  }
}

TEST(ScgptTokenizerTest, MaskRatioZeroAndCellsWithoutGenesStayAsTheyAre) {
  const std::vector<float> values{0, 3, 5};
  std::vector<float> hidden(3);
  std::vector<uint8_t> masked(3);
  mask_values(values, {.ratio = 0}, 0, 0, hidden, masked);
  EXPECT_EQ(hidden, values);
  EXPECT_THAT(masked, Each(0));
  const std::vector<float> cls{0};
  hidden.resize(1), masked.resize(1);
  mask_values(cls, {.ratio = 0.9}, 0, 0, hidden, masked);
  EXPECT_EQ(hidden, cls);
  EXPECT_THROW(mask_values(cls, {.ratio = 1}, 0, 0, hidden, masked), ConfigError);
}

TokenisedCells three_cells() {
  TokenisedCells chunk;
  chunk.first_cell = 10;
  chunk.offsets = {0, 2, 3, 6};
  chunk.genes = {9, 1, 9, 9, 2, 3};
  chunk.values = {0, 4, 0, 0, 5, 6};
  chunk.empty = {11};
  return chunk;
}

TEST(TokenStoreTest, KeepsTheSelectedCellsOfEveryChunk) {
  TokenStore store;
  const std::vector<int64_t> selection{3, 10, 12, 14, 99};
  store.append(three_cells(), selection);
  TokenisedCells next = three_cells();
  next.first_cell = 13;
  store.append(next, selection);
  ASSERT_EQ(store.size(), 3);
  EXPECT_EQ(store.tokens(), 2 + 3 + 1);
  EXPECT_EQ(store.longest(), 3);
  EXPECT_EQ(store.view(1).cell, 12);
  EXPECT_THAT(store.view(1).genes, ElementsAre(9, 2, 3));
  EXPECT_THAT(store.view(1).values, ElementsAre(0, 5, 6));
  EXPECT_EQ(store.view(2).cell, 14);
  EXPECT_THAT(store.view(2).genes, ElementsAre(9));
  EXPECT_EQ(store.view(0).label, -1);
}

TEST(TokenStoreTest, TakesAllCellsWithoutASelection) {
  TokenStore store;
  EXPECT_EQ(store.longest(), 0);
  store.append(three_cells());
  ASSERT_EQ(store.size(), 3);
  EXPECT_EQ(store.view(2).cell, 12);
}

}  // namespace
}  // namespace scgraft
