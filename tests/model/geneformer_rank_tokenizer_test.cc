// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "io/h5ad_rows.h"
#include "io/json.h"
#include "model/geneformer/rank_tokenizer.h"
#include "model/token_store.h"
#include "runtime/random.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/h5ad_fixture.h"
#include "tests/model/npz.h"
#include "tests/model/sparse_rows.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kGolden = "golden/tok_geneformer_v1/arrays.npz";
constexpr const char* kV1 = "data/vocab/geneformer_v1_";
constexpr const char* kV1Tokens = "data/vocab/geneformer_v1_token_dictionary.json";

GeneDictionaries published(const std::string& mapping = {}) {
  const auto path = [](const std::string& name) { return shared_path(kV1 + name); };
  return GeneDictionaries::open(path("token_dictionary.json"), path("gene_median_dictionary.json"),
                                mapping.empty() ? std::string() : path(mapping));
}

std::vector<std::string> names_in(const std::string& file) {
  return read_json(shared_path(file), FileKind::data).get<std::vector<std::string>>();
}

TokenisedCells tokenised(const RankTokenizer& tokenizer, const SparseRows& rows,
                         const CellTotals& totals, std::string_view counts = "float32",
                         int threads = 1) {
  Context ctx(Device::cpu(), {.threads = threads});
  TokenisedCells cells;
  tokenizer.tokenise(ctx, rows, totals, counts, cells);
  return cells;
}

std::vector<int32_t> tokens_of(const TokenisedCells& cells, int64_t cell) {
  const auto genes = cells.view(cell).genes;
  return {genes.begin(), genes.end()};
}

// A recorded row, without its padding.
std::vector<int32_t> recorded(const Npz::Array& array, int64_t row) {
  std::vector<int32_t> tokens = array.row<int32_t>(row);
  while (!tokens.empty() && tokens.back() == 0) tokens.pop_back();
  return tokens;
}

class RecordedRankTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SCGRAFT_NEEDS_SHARED(kGolden);
    SCGRAFT_NEEDS_SHARED(kV1Tokens);
    npz_.emplace(shared_path(kGolden));
    dictionaries_ = published();
    ids_ = names_in("golden/tok_geneformer_v1/ensembl_ids.json");
    totals_ = {.values = array("n_counts").values, .type = "float32"};
    const Npz::Array counts = array("counts");
    rows_ = sparse_rows(counts.shape[1], counts.all<float>());
  }
  Npz::Array array(const std::string& name) const { return (*npz_)[name]; }

  std::optional<Npz> npz_;
  GeneDictionaries dictionaries_;
  std::vector<std::string> ids_;
  CellTotals totals_;
  SparseRows rows_;
};

TEST_F(RecordedRankTest, TheSameColumnsAreUsedWithTheSameTokensAndMedians) {
  const auto columns = array("columns_used").all<size_t>();
  const auto tokens = array("tokens_used").all<int32_t>();
  const auto medians = array("medians_used").values;
  size_t used = 0;
  for (size_t column = 0; column < ids_.size(); ++column) {
    const auto token = dictionaries_.find(ids_[column]);
    if (!token) continue;
    ASSERT_LT(used, columns.size());
    EXPECT_EQ(columns[used], column);
    EXPECT_EQ(tokens[used], *token);
    EXPECT_EQ(medians[used], dictionaries_.medians[static_cast<size_t>(*token)]);
    ++used;
  }
  EXPECT_EQ(used, columns.size());
  const RankTokenizer tokenizer(dictionaries_, ids_, "recorded");
  EXPECT_EQ(tokenizer.matched(), 400);
  EXPECT_EQ(tokenizer.columns(), 402);
}

TEST_F(RecordedRankTest, RankValuesAreTheOriginalsBitForBit) {
  const Npz::Array counts = array("counts");
  const auto columns = array("columns_used").all<size_t>();
  const auto medians = array("medians_used").values;
  const auto ties = array("tie_counts").all<size_t>();
  for (const char* type : {"float32", "int64"}) {
    const Npz::Array want = array(cat("dense_normalised_", type));
    const RankArithmetic arithmetic = rank_arithmetic(type, "float32");
    for (int64_t cell = 0; cell < counts.shape[0]; ++cell) {
      const auto x = counts.row<double>(cell);
      std::vector<double> values;
      for (size_t k = 0; k < columns.size(); ++k)
        values.push_back(rank_value(x[columns[k]], totals_.values[static_cast<size_t>(cell)],
                                    medians[k], arithmetic));
      EXPECT_EQ(values, want.row<double>(cell)) << type << " " << cell;
      std::erase(values, 0.0);
      const std::set<double> distinct(values.begin(), values.end());
      EXPECT_EQ(values.size() - distinct.size(), ties[static_cast<size_t>(cell)]);
    }
  }
}

TEST_F(RecordedRankTest, TokensAreTheRecordedOnes) {
  const RankTokenizer tokenizer(dictionaries_, ids_, "recorded");
  for (const char* type : {"float32", "int64"}) {
    const TokenisedCells cells = tokenised(tokenizer, rows_, totals_, type);
    const Npz::Array want = array(cat("dense_tokens_", type));
    ASSERT_EQ(cells.cells(), want.shape[0]);
    for (int64_t cell = 0; cell < cells.cells(); ++cell)
      EXPECT_EQ(tokens_of(cells, cell), recorded(want, cell)) << type << " " << cell;
  }
}

// What the original makes of the file: the last cell does not pass the filter.
TEST_F(RecordedRankTest, AFilesCellsAreTheRecordedOnes) {
  const auto totals = array("n_counts").all<float>();
  const auto pass = array("filter_pass").all<int64_t>();
  TemporaryFolder folder;
  const H5ad file = H5ad::open(
      write_h5ad(folder / "t.h5ad", rows_.rows(), rows_.columns, [&](hdf5::OutNode& root) {
        hdf5::OutNode obs = root.child("obs");
        obs.add_array("n_counts", totals);
        obs.add_array("filter_pass", pass);
        obs.set_texts("column-order", {"n_counts", "filter_pass"});
        add_sparse(root, "X", "csr_matrix", rows_.rows(), rows_.columns, rows_.value, rows_.column,
                   rows_.offsets);
      }));
  const CellTotals read = read_cell_totals(file.obs());
  EXPECT_EQ(read.values, totals_.values);
  EXPECT_EQ(read.type, "float32");
  RowReader reader(file, "X", {.chunk_rows = 2});
  const RankTokenizer tokenizer(dictionaries_, ids_, file.path());
  Context ctx(Device::cpu(), {.threads = 2});
  const std::vector<int64_t> passing = passing_cells(file.obs());
  TokenStore store;
  SparseRows rows;
  for (TokenisedCells cells; reader.next(rows);) {
    tokenizer.tokenise(ctx, rows, read, reader.slot().dtype, cells);
    store.append(cells, passing);
  }
  const Npz::Array want = array("tokens_padded");
  const auto lengths = array("lengths").all<size_t>();
  ASSERT_EQ(store.size(), want.shape[0]);
  for (int64_t cell = 0; cell < store.size(); ++cell) {
    const CellView view = store.view(cell);
    EXPECT_EQ(view.genes.size(), lengths[static_cast<size_t>(cell)]);
    EXPECT_EQ(std::vector<int32_t>(view.genes.begin(), view.genes.end()), recorded(want, cell));
    for (size_t i = 0; i < view.values.size(); ++i)
      EXPECT_EQ(view.values[i], static_cast<float>(i));
  }
}

// Genes of equal rank value come in the order of the columns here and in any order there.
TEST_F(RecordedRankTest, TiedPairsAreNeighboursAndAllElseIsInPlace) {
  ids_ = names_in("golden/tok_geneformer_v1/tie_case_ensembl_ids.json");
  const Npz::Array counts = array("tie_case_counts");
  const Npz::Array want = array("tie_case_tokens");
  const Npz::Array pairs = array("tie_case_tied_tokens");
  const RankTokenizer tokenizer(dictionaries_, ids_, "ties");
  const TokenisedCells cells =
      tokenised(tokenizer, sparse_rows(counts.shape[1], counts.all<float>()),
                {.values = array("tie_case_n_counts").values, .type = "float32"});
  std::map<int32_t, int32_t> pair_of;  // the smaller token of a pair stands for both
  for (int64_t pair = 0; pair < pairs.shape[0]; ++pair)
    for (const auto token : pairs.row<int32_t>(pair)) pair_of[token] = pairs.row<int32_t>(pair)[0];
  std::map<int32_t, size_t> column_of;
  for (size_t column = 0; column < ids_.size(); ++column)
    if (const auto token = dictionaries_.find(ids_[column])) column_of[*token] = column;
  ASSERT_EQ(pair_of.size(), 22u);
  int64_t swapped = 0;
  int64_t pairs_seen = 0;
  for (int64_t cell = 0; cell < cells.cells(); ++cell) {
    const std::vector<int32_t> got = tokens_of(cells, cell);
    const std::vector<int32_t> there = recorded(want, cell);
    ASSERT_EQ(got.size(), there.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const auto pair = pair_of.find(got[i]);
      if (pair == pair_of.end()) {
        EXPECT_EQ(got[i], there[i]) << cell << " " << i;
        continue;
      }
      ASSERT_EQ(pair_of.count(there[i]), 1u);
      EXPECT_EQ(pair->second, pair_of[there[i]]) << cell << " " << i;
      swapped += got[i] != there[i];
      if (i > 0 && pair_of.count(got[i - 1]) != 0 && pair_of[got[i - 1]] == pair->second) {
        EXPECT_LT(column_of[got[i - 1]], column_of[got[i]]);
        ++pairs_seen;
      }
    }
  }
  EXPECT_EQ(pairs_seen, 33);
  EXPECT_EQ(swapped, 40);  // 20 of the 33 pairs, as the specification counts them
}

uint64_t fnv1a(uint64_t hash, int32_t token) {
  return (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
}

// Whole files of real counts by symbol, without n_counts. The digests (FNV-1a over all tokens) were
// made by NumPy 1.24 with a stable argsort of  -(X / X.sum(1) * 10000 / median).
TEST(RankTokenizerRealDataTest, WholeFilesGetTheTokensThatNumpyComputes) {
  struct Case {
    const char* file;
    int64_t matched, tokens, longest, cut;
    uint64_t digest;
  };
  for (const Case& c :
       {Case{"data/zheng68k_165cells_counts.h5ad", 8319, 88214, 801, 0, 16029037356903429126u},
        Case{"data/scp1884_human_gut_crohn.h5ad", 14399, 1019805, 2048, 114,
             4977134811077379021u}}) {
    SCGRAFT_NEEDS_SHARED(c.file);
    SCGRAFT_NEEDS_SHARED(kV1Tokens);
    const H5ad file = H5ad::open(shared_path(c.file));
    const RankTokenizer tokenizer(published("gene_name_id_dict.json"), file.var().index(), c.file);
    EXPECT_EQ(tokenizer.matched(), c.matched);
    for (const int64_t chunk_rows : {int64_t{1} << 16, int64_t{77}}) {
      Context ctx(Device::cpu(), {.threads = 2});
      RowReader reader(file, "X", {.chunk_rows = chunk_rows});
      uint64_t digest = 1469598103934665603u;
      int64_t tokens = 0, longest = 0, full = 0;
      SparseRows rows;
      for (TokenisedCells cells; reader.next(rows);) {
        tokenizer.tokenise(ctx, rows, {}, reader.slot().dtype, cells);
        tokens += cells.offsets.back();
        for (int64_t cell = 0; cell < cells.cells(); ++cell) {
          const auto length = static_cast<int64_t>(cells.view(cell).genes.size());
          longest = std::max(longest, length);
          full += length == 2048;
        }
        for (const int32_t token : cells.genes) digest = fnv1a(digest, token);
      }
      EXPECT_EQ(digest, c.digest);
      EXPECT_EQ(tokens, c.tokens);
      EXPECT_EQ(longest, c.longest);
      EXPECT_EQ(full, c.cut);
    }
  }
}

// Dictionaries of the second generation made from those of the first: tokens two higher, symbols in
// upper case mapped to ids, and those of antisense genes ("...-AS1") to the gene they belong to.
GeneDictionaries second_generation(const TemporaryFolder& folder) {
  const auto first = [](const std::string& name) {
    return read_json(shared_path(kV1 + name), FileKind::model);
  };
  const nlohmann::json first_tokens = first("token_dictionary.json");
  nlohmann::json tokens = {{"<pad>", 0}, {"<mask>", 1}, {"<cls>", 2}, {"<eos>", 3}};
  for (const auto& [id, token] : first_tokens.items())
    if (!id.starts_with("<")) tokens[id] = token.get<int64_t>() + 2;
  const nlohmann::json symbols = first("gene_name_id_dict.json");
  nlohmann::json mapping = nlohmann::json::object();
  for (const auto& [symbol, own] : symbols.items()) {
    std::string id = own;
    if (symbol.ends_with("-AS1")) {
      const auto sense = symbols.find(symbol.substr(0, symbol.size() - 4));
      if (sense != symbols.end() && tokens.contains(*sense)) id = *sense;
    }
    std::string upper = symbol;
    std::transform(upper.begin(), upper.end(), upper.begin(), ::toupper);
    if (tokens.contains(id)) mapping[upper] = id;
  }
  return GeneDictionaries::open(put(folder / "tokens.json", tokens.dump()),
                                shared_path(cat(kV1, "gene_median_dictionary.json")),
                                put(folder / "mapping.json", mapping.dump()));
}

TEST(RankTokenizerRealDataTest, TheSecondGenerationGetsTheTokensThatNumpyComputes) {
  constexpr const char* kFile = "data/scp1884_human_gut_crohn.h5ad";
  SCGRAFT_NEEDS_SHARED(kFile);
  SCGRAFT_NEEDS_SHARED(kV1Tokens);
  const TemporaryFolder folder;
  const GeneDictionaries dictionaries = second_generation(folder);
  const H5ad file = H5ad::open(shared_path(kFile));
  RowReader reader(file, "X");
  SparseRows rows;
  reader.read(0, reader.rows(), rows);
  struct Case {
    int64_t max_length, tokens;
    uint64_t digest;
  };
  for (const Case& c :
       {Case{0, 1062458, 298444920875450108u}, Case{300, 303870, 4312397175154942940u}}) {
    const RankTokenizer tokenizer(dictionaries, file.var().index(), kFile,
                                  {.max_length = c.max_length});
    EXPECT_EQ(tokenizer.matched(), 14638);
    EXPECT_EQ(tokenizer.matched() - tokenizer.merged(), 14409);
    const TokenisedCells cells = tokenised(tokenizer, rows, {}, "float32", 2);
    EXPECT_EQ(cells.offsets.back(), c.tokens);
    uint64_t digest = 1469598103934665603u;
    for (const int32_t token : cells.genes) digest = fnv1a(digest, token);
    EXPECT_EQ(digest, c.digest);
  }
}

// Six genes with other medians in either generation.
class RankTokenizerTest : public ::testing::Test {
 protected:
  GeneDictionaries open(const std::string& specials, const std::string& mapping = {}) {
    std::string tokens = "{" + specials;
    std::string medians;
    const int64_t first = std::count(specials.begin(), specials.end(), ':');
    for (int i = 0; i < 6; ++i) {
      tokens += cat(", \"G", i, "\": ", first + i);
      medians += cat(i == 0 ? "{" : ", ", "\"G", i, "\": ", kMedians[i]);
    }
    return GeneDictionaries::open(
        put(folder_ / "tokens.json", tokens + "}"), put(folder_ / "medians.json", medians + "}"),
        mapping.empty() ? std::string() : put(folder_ / "mapping.json", mapping));
  }
  GeneDictionaries v1() { return open(R"("<pad>": 0, "<mask>": 1)"); }
  GeneDictionaries v2() {
    return open(R"("<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3)",
                R"({"G0": "G0", "G1": "G1", "G2": "G2", "OLD1": "G1", "SYM": "G5"})");
  }
  static constexpr double kMedians[] = {1, 2, 4, 0.5, 2, 3};
  const std::vector<std::string> genes_{"G0", "G1", "G2", "G3", "G4", "G5"};
  TemporaryFolder folder_;
};

TEST_F(RankTokenizerTest, GenesComeByDescendingShareOfTheirMedian) {
  const RankTokenizer tokenizer(v1(), genes_, "f");
  const TokenisedCells cells = tokenised(tokenizer, sparse_rows(6, {3, 2, 0, 1, 0, 12,  //
                                                                    0, 0, 0, 0, 0, 0,   //
                                                                    0, 0, 7, 0, 0, 0,   //
                                                                    0, 0, 0, 0, 0, 0}),
                                         {.values = {100, 0, 7, 0}, .type = "int64"});
  // 3/1, 2/2, 1/0.5, 12/3
  EXPECT_THAT(tokens_of(cells, 0), ElementsAre(7, 2, 5, 3));
  EXPECT_THAT(cells.view(0).values, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(tokens_of(cells, 1), IsEmpty());
  EXPECT_THAT(tokens_of(cells, 2), ElementsAre(4));
  EXPECT_THAT(cells.empty, ElementsAre(1, 3));
}

TEST_F(RankTokenizerTest, EqualValuesStayInTheOrderOfTheColumns) {
  // 2/1, 4/2, 8/4, 1/0.5, 4/2, 6/3: all the same.
  const std::vector<float> row{2, 4, 8, 1, 4, 6};
  const RankTokenizer tokenizer(v1(), genes_, "f");
  EXPECT_THAT(tokens_of(tokenised(tokenizer, sparse_rows(6, row), {}, "int64"), 0),
              ElementsAre(2, 3, 4, 5, 6, 7));
  const std::vector<std::string> reversed(genes_.rbegin(), genes_.rend());
  const RankTokenizer backwards(v1(), reversed, "f");
  EXPECT_THAT(
      tokens_of(tokenised(backwards, sparse_rows(6, {row.rbegin(), row.rend()}), {}, "int64"), 0),
      ElementsAre(7, 6, 5, 4, 3, 2));
}

TEST_F(RankTokenizerTest, LongCellsLoseTheirLastGenes) {
  const SparseRows rows = sparse_rows(6, {3, 2, 0, 1, 0, 12});
  EXPECT_THAT(tokens_of(tokenised({v1(), genes_, "f", {.max_length = 3}}, rows, {}), 0),
              ElementsAre(7, 2, 5));
  const std::vector<std::string> mapped{"G0", "G1", "G2", "x", "y", "sym"};
  EXPECT_THAT(tokens_of(tokenised({v2(), mapped, "f", {.max_length = 4}}, rows, {}), 0),
              ElementsAre(2, 9, 4, 3));
  EXPECT_THROW(RankTokenizer(v2(), mapped, "f", {.max_length = 2}), ConfigError);
  EXPECT_THROW(RankTokenizer(v1(), genes_, "f", {.max_length = -1}), ConfigError);
}

TEST_F(RankTokenizerTest, TheSecondGenerationSumsColumnsAndFramesTheCell) {
  const std::vector<std::string> names{"old1", "G0", "g1", "G5", "sym", "G2"};
  const RankTokenizer tokenizer(v2(), names, "f");
  EXPECT_EQ(tokenizer.matched(), 5);  // G5 is unmapped: only "SYM" leads to it
  EXPECT_EQ(tokenizer.merged(), 1);
  const TokenisedCells cells = tokenised(tokenizer, sparse_rows(6, {3, 3, 4, 50, 3, 1,  //
                                                                    0, 0, 0, 9,  0, 0,  //
                                                                    2, 1, 0, 0,  0, 0,  //
                                                                    0, 1, 2, 0,  0, 0}),
                                         {});
  // G1 (3 + 4)/2, G0 3/1, G5 3/3, G2 1/4
  EXPECT_THAT(tokens_of(cells, 0), ElementsAre(2, 5, 4, 9, 6, 3));
  EXPECT_THAT(cells.view(0).values, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(tokens_of(cells, 1), ElementsAre(2, 3));
  EXPECT_THAT(cells.empty, ElementsAre(1));
  // A tie of G1 and G0: G1's place is its first column, also where only the second has counts.
  EXPECT_THAT(tokens_of(cells, 2), ElementsAre(2, 5, 4, 3));
  EXPECT_THAT(tokens_of(cells, 3), ElementsAre(2, 5, 4, 3));
}

// The first generation has no sums: a gene named by two columns is two tokens, as in the original.
TEST_F(RankTokenizerTest, TheFirstGenerationKeepsRepeatedColumns) {
  const RankTokenizer tokenizer(v1(), std::vector<std::string>{"G1", "G0", "G1"}, "f");
  EXPECT_THAT(tokens_of(tokenised(tokenizer, sparse_rows(3, {2, 2, 6}), {}), 0),
              ElementsAre(3, 2, 3));
}

// Random counts of all genes of the published dictionary's first 3000.
class RankPropertyTest : public ::testing::Test {
 protected:
  static constexpr int64_t kGenes = 3000, kCells = 80;
  void SetUp() override {
    SCGRAFT_NEEDS_SHARED(kV1Tokens);
    dictionaries_ = published();
    RandomStream random(7, RandomUse::masking, 0, 0);
    for (int64_t gene = 0; gene < kGenes; ++gene)
      ids_.push_back(dictionaries_.tokens.token(2 + gene));
    for (int64_t i = 0; i < kCells * kGenes; ++i) {
      const auto draw = static_cast<float>(random.below(40));
      dense_.push_back(draw > 12 ? 0.f : draw);
    }
    rows_ = sparse_rows(kGenes, dense_);
    for (int64_t cell = 0; cell < kCells; ++cell)
      totals_.values.push_back(static_cast<double>(9000 + 131 * cell));
    totals_.type = "float64";
  }

  // What the cells are ranked by, with ties made equal: sets of tokens in their order.
  std::vector<std::pair<double, std::set<int32_t>>> levels(const TokenisedCells& cells,
                                                           const std::vector<float>& dense,
                                                           const std::vector<std::string>& ids,
                                                           int64_t cell) const {
    std::map<int32_t, double> value;
    for (size_t column = 0; column < ids.size(); ++column) {
      const int32_t token = *dictionaries_.find(ids[column]);
      value[token] =
          rank_value(dense[static_cast<size_t>(cell * kGenes) + column],
                     totals_.values[static_cast<size_t>(cell)],
                     dictionaries_.medians[static_cast<size_t>(token)], RankArithmetic::f64);
    }
    std::vector<std::pair<double, std::set<int32_t>>> sets;
    for (const int32_t token : tokens_of(cells, cell)) {
      if (sets.empty() || sets.back().first != value[token]) sets.push_back({value[token], {}});
      sets.back().second.insert(token);
    }
    return sets;
  }

  GeneDictionaries dictionaries_;
  std::vector<std::string> ids_;
  std::vector<float> dense_;
  SparseRows rows_;
  CellTotals totals_;
};

TEST_F(RankPropertyTest, AnyOrderOfColumnsGivesTheSameTokensUpToTies) {
  std::vector<size_t> order(kGenes);
  std::iota(order.begin(), order.end(), size_t{0});
  RandomStream random(8, RandomUse::masking, 0, 0);
  for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[random.below(i + 1)]);
  std::vector<std::string> ids;
  for (const size_t column : order) ids.push_back(ids_[column]);
  std::vector<float> dense;
  for (int64_t cell = 0; cell < kCells; ++cell)
    for (const size_t column : order)
      dense.push_back(dense_[static_cast<size_t>(cell * kGenes) + column]);
  const TokenisedCells here = tokenised({dictionaries_, ids_, "f"}, rows_, totals_);
  const TokenisedCells there =
      tokenised({dictionaries_, ids, "f"}, sparse_rows(kGenes, dense), totals_);
  EXPECT_EQ(here.offsets, there.offsets);
  for (int64_t cell = 0; cell < kCells; ++cell)
    EXPECT_EQ(levels(here, dense_, ids_, cell), levels(there, dense, ids, cell)) << cell;
}

TEST_F(RankPropertyTest, ACellIsTheSameAloneInChunksAndOnAnyThread) {
  const RankTokenizer tokenizer(dictionaries_, ids_, "f");
  const TokenisedCells all = tokenised(tokenizer, rows_, totals_, "float32", 1);
  for (const int threads : {2, 3}) {
    const TokenisedCells again = tokenised(tokenizer, rows_, totals_, "float32", threads);
    EXPECT_EQ(again.offsets, all.offsets);
    EXPECT_EQ(again.genes, all.genes);
    EXPECT_EQ(again.values, all.values);
  }
  for (const int64_t size : {1, 7, 33})
    for (int64_t begin = 0; begin < kCells; begin += size) {
      const int64_t end = std::min(kCells, begin + size);
      const TokenisedCells part = tokenised(tokenizer, rows_between(rows_, begin, end), totals_);
      EXPECT_EQ(part.first_cell, begin);
      for (int64_t cell = begin; cell < end; ++cell)
        EXPECT_EQ(tokens_of(part, cell - begin), tokens_of(all, cell));
    }
}

// By a power of two, so that nothing is rounded otherwise.
TEST_F(RankPropertyTest, ScalingCountsAndTotalsTogetherChangesNothing) {
  const RankTokenizer tokenizer(dictionaries_, ids_, "f");
  for (const char* type : {"float32", "float64"}) {
    totals_.type = type;
    const TokenisedCells here = tokenised(tokenizer, rows_, totals_);
    SparseRows rows = rows_;
    CellTotals totals = totals_;
    for (float& value : rows.value) value *= 8;
    for (double& total : totals.values) total *= 8;
    EXPECT_EQ(tokenised(tokenizer, rows, totals).genes, here.genes);
  }
}

TEST_F(RankTokenizerTest, TheTypesOfTheFileChooseTheArithmetic) {
  EXPECT_EQ(rank_arithmetic("float32", "float32"), RankArithmetic::f32);
  EXPECT_EQ(rank_arithmetic("float32", "int16"), RankArithmetic::f32);
  EXPECT_EQ(rank_arithmetic("uint16", "float32"), RankArithmetic::f32);
  EXPECT_EQ(rank_arithmetic("float32", "float64"), RankArithmetic::f64);
  EXPECT_EQ(rank_arithmetic("float32", "int32"), RankArithmetic::f64);
  EXPECT_EQ(rank_arithmetic("int64", "float32"), RankArithmetic::f64);
  EXPECT_EQ(rank_arithmetic("int64", "int64"), RankArithmetic::f64);
  EXPECT_EQ(rank_arithmetic("uint16", "int16"), RankArithmetic::f64);
  EXPECT_EQ(rank_value(3, 7, 2, RankArithmetic::f64), 3.0 / 7 * 10000 / 2);
  EXPECT_EQ(rank_value(3, 7, 2, RankArithmetic::f32), static_cast<double>(3.f / 7.f * 10000.f) / 2);
  EXPECT_NE(rank_value(3, 7, 2, RankArithmetic::f32), rank_value(3, 7, 2, RankArithmetic::f64));
}

TEST_F(RankTokenizerTest, MissingColumnsOfObsHaveDefaults) {
  const H5ad file = H5ad::open(write_h5ad(folder_ / "t.h5ad", 3, 2));
  EXPECT_THAT(read_cell_totals(file.obs()).values, IsEmpty());
  EXPECT_THAT(passing_cells(file.obs()), ElementsAre(0, 1, 2));
}

TEST_F(RankTokenizerTest, ColumnsOfObsMustHoldNumbers) {
  const H5ad file = H5ad::open(write_h5ad(folder_ / "t.h5ad", 2, 2, [](hdf5::OutNode& root) {
    hdf5::OutNode obs = root.child("obs");
    obs.add_strings("n_counts", std::vector<std::string>{"many", "few"});
    obs.add_array("filter_pass", std::vector<double>{NAN, 1});
    obs.set_texts("column-order", {"n_counts", "filter_pass"});
  }));
  expect_data_error("E-OBS-TYPE", "\"n_counts\" of obs holds string values",
                    [&] { read_cell_totals(file.obs()); });
  expect_data_error("E-OBS-TYPE", "wanted numbers", [&] { passing_cells(file.obs(), "n_counts"); });
  EXPECT_THAT(passing_cells(file.obs()), ElementsAre(1));
}

TEST_F(RankTokenizerTest, BadCellsAreNamed) {
  const RankTokenizer tokenizer(v1(), genes_, "f.h5ad");
  const SparseRows rows = sparse_rows(6, {0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0}, 4);
  for (const double total : {0.0, -1.0, static_cast<double>(NAN), HUGE_VAL})
    expect_data_error("E-CELL-TOTAL", "f.h5ad: cell 5 has expressed genes and a total of", [&] {
      tokenised(tokenizer, rows, {.values = {1, 1, 1, 1, 1, total}});
    });
  expect_data_error("E-VALUES-NEGATIVE", "cell 0", [&] {
    tokenised(tokenizer, sparse_rows(6, {0, -1, 0, 0, 0, 0}), {});
  });
  expect_data_error("E-VALUES-NONFINITE", "cell 0", [&] {
    tokenised(tokenizer, sparse_rows(6, {0, NAN, 0, 0, 0, 0}), {});
  });
  EXPECT_THROW(tokenised(tokenizer, rows, {.values = {1, 1, 1}}), ShapeError);
  EXPECT_THROW(tokenised(tokenizer, sparse_rows(5, {1, 1, 1, 1, 1}), {}), ShapeError);
}

TEST_F(RankTokenizerTest, AFileWithoutAnyKnownGeneIsRefused) {
  expect_data_error("E-GENE-NONE", "f: none of its 2 genes has a token in", [&] {
    RankTokenizer(v1(), std::vector<std::string>{"CD3D", "<mask>"}, "f");
  });
}

TEST_F(RankTokenizerTest, CellsMustFitThePositionsOfTheModel) {
  require_positions(v1(), {}, 2048, "m");
  require_positions(v2(), {.max_length = 40}, 40, "m");
  try {
    require_positions(v2(), {}, 2048, "m");
    ADD_FAILURE() << "not refused";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), "E-PREPARE");
    EXPECT_THAT(error.what(), HasSubstr("up to 4096 tokens were asked for; the model m has 2048"));
  }
}

}  // namespace
}  // namespace scgraft
