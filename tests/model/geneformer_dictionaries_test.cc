// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/dictionaries.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

constexpr const char* kV1Tokens = R"({"<pad>": 0, "<mask>": 1, "ENSG1": 2, "ENSG2": 3})";
constexpr const char* kV2Tokens =
    R"({"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG1": 4, "ENSG2": 5})";
constexpr const char* kMedians = R"({"ENSG1": 2.5, "ENSG2": 3})";

class GeneDictionariesTest : public ::testing::Test {
 protected:
  GeneDictionaries open(const std::string& tokens, const std::string& medians,
                        const std::string& mapping = {}) {
    return GeneDictionaries::open(
        put(folder_ / "tokens.json", tokens), put(folder_ / "medians.json", medians),
        mapping.empty() ? std::string() : put(folder_ / "mapping.json", mapping));
  }
  void expect_refused(const std::string& code, const std::string& part, const std::string& tokens,
                      const std::string& medians, const std::string& mapping = {}) {
    expect_model_error(code, part, [&] { open(tokens, medians, mapping); });
  }
  TemporaryFolder folder_;
};

TEST_F(GeneDictionariesTest, TheSpecialTokensTellTheGeneration) {
  const GeneDictionaries v1 = open(kV1Tokens, kMedians);
  EXPECT_EQ(v1.generation, GeneformerGeneration::v1);
  EXPECT_EQ(v1.published_length(), 2048);
  EXPECT_EQ(v1.cls_id, -1);
  EXPECT_THAT(v1.medians, ::testing::ElementsAre(0, 0, 2.5, 3));
  const GeneDictionaries v2 = open(kV2Tokens, kMedians);
  EXPECT_EQ(v2.generation, GeneformerGeneration::v2);
  EXPECT_EQ(v2.published_length(), 4096);
  EXPECT_EQ(v2.cls_id, 2);
  EXPECT_EQ(v2.eos_id, 3);
  EXPECT_EQ(v2.pad_id, 0);
}

TEST_F(GeneDictionariesTest, GenesAreFoundByTheNamesOfTheirGeneration) {
  const GeneDictionaries v1 = open(kV1Tokens, kMedians, R"({"ABC": "ENSG2", "def": "ENSG9"})");
  EXPECT_EQ(v1.find("ENSG1"), 2);
  EXPECT_EQ(v1.find("ABC"), 3);
  EXPECT_EQ(v1.find("abc"), std::nullopt);
  EXPECT_EQ(v1.find("ensg1"), std::nullopt);
  EXPECT_EQ(v1.find("def"), std::nullopt);
  EXPECT_EQ(v1.find("<mask>"), std::nullopt);
  const GeneDictionaries v2 =
      open(kV2Tokens, kMedians, R"({"ENSG1": "ENSG1", "ENSG0": "ENSG1", "ABC": "ENSG2"})");
  EXPECT_EQ(v2.find("ensg1"), 4);
  EXPECT_EQ(v2.find("ENSG0"), 4);
  EXPECT_EQ(v2.find("abc"), 5);
  EXPECT_EQ(v2.find("ENSG2"), std::nullopt);  // unmapped
  EXPECT_EQ(v2.find("<cls>"), std::nullopt);
  const GeneDictionaries alone = open(kV2Tokens, kMedians);
  EXPECT_EQ(alone.find("ensg2"), 5);
  EXPECT_EQ(alone.find("<CLS>"), std::nullopt);
  EXPECT_EQ(alone.find("<cls>"), std::nullopt);
}

TEST_F(GeneDictionariesTest, MixedGenerationsAreRefusedWithBothFilesAndCounts) {
  const std::string mix = "E-DICTIONARY-MIX";
  expect_refused(mix, "1 tokens have no median, the first is ENSG2", kV1Tokens, R"({"ENSG1": 1})");
  expect_refused(mix, "1 medians have no token, the first is ENSG3", kV1Tokens,
                 R"({"ENSG1": 1, "ENSG2": 1, "ENSG3": 1})");
  expect_refused(mix, "none of the 1 names", kV2Tokens, kMedians, R"({"A": "ENSG9"})");
  try {
    open(kV1Tokens, R"({"ENSG1": 1})");
    ADD_FAILURE() << "not refused";
  } catch (const ModelError& error) {
    EXPECT_THAT(error.what(), HasSubstr(folder_ / "tokens.json" + " has tokens for 2 genes, " +
                                        folder_.path() + "/medians.json has medians of 1"));
    EXPECT_THAT(error.hint(), HasSubstr("one generation"));
  }
}

TEST_F(GeneDictionariesTest, OneMedianInTwentyMayHaveNoToken) {
  for (const int extra : {1, 2}) {
    std::string tokens = R"({"<pad>": 0, "<mask>": 1)";
    std::string medians;
    for (int i = 0; i < 20; ++i) {
      if (i < 20 - extra) tokens += cat(", \"E", i, "\": ", i + 2);
      medians += cat(i == 0 ? "{" : ", ", "\"E", i, "\": 1");
    }
    tokens += "}";
    medians += "}";
    if (extra == 1)
      EXPECT_EQ(open(tokens, medians).tokens.size(), 21);
    else
      expect_refused("E-DICTIONARY-MIX", "2 medians have no token", tokens, medians);
  }
}

TEST_F(GeneDictionariesTest, WrongContentIsRefused) {
  expect_refused("E-DICTIONARY", "\"ENSG1\" is not a median", kV1Tokens, R"({"ENSG1": 0})");
  expect_refused("E-DICTIONARY", "\"ENSG1\" is not a median", kV1Tokens, R"({"ENSG1": "ENSG2"})");
  expect_refused("E-DICTIONARY", "is not a token", kMedians, kV1Tokens);  // the two swapped
  expect_refused("E-DICTIONARY", "is not a gene", kV1Tokens, kMedians, kMedians);
  expect_refused("E-VOCAB", "is \"<mask>\"", R"({"<pad>": 0, "ENSG1": 1, "ENSG2": 2})", kMedians);
  expect_refused("E-VOCAB", "is \"<pad>\"", "{}", kMedians);
  expect_refused("E-VOCAB", "is \"<eos>\"",
                 R"({"<pad>": 0, "<mask>": 1, "<cls>": 2, "ENSG1": 3, "ENSG2": 4})", kMedians);
  expect_refused("E-VOCAB", "has the id 7", R"({"<pad>": 0, "<mask>": 1, "ENSG1": 7, "ENSG2": 2})",
                 kMedians);
}

TEST_F(GeneDictionariesTest, TheModelMustHaveARowForEveryToken) {
  const GeneDictionaries v1 = open(kV1Tokens, kMedians);
  GeneformerConfig config;
  config.vocab = 4;
  v1.require_model(config, "m");
  config.pad_id = 2;
  expect_model_error("E-VOCAB-SIZE", "<pad> being 0; the model m pads with 2",
                     [&] { v1.require_model(config, "m"); });
  config = {};
  expect_model_error("E-VOCAB-SIZE", "has 4 tokens (V1), the model m has a vocab_size of 25426",
                     [&] { v1.require_model(config, "m"); });
}

TEST_F(GeneDictionariesTest, ReadsThePublishedOnesFromPicklesAndJson) {
  const std::string stem = "data/vocab/geneformer_v1_";
  SCGRAFT_NEEDS_SHARED(stem + "token_dictionary.pkl");
  const auto path = [&](const std::string& name) { return shared_path(stem + name); };
  const GeneDictionaries pickle =
      GeneDictionaries::open(path("token_dictionary.pkl"), path("gene_median_dictionary.pkl"));
  const GeneDictionaries json =
      GeneDictionaries::open(path("token_dictionary.json"), path("gene_median_dictionary.json"),
                             path("gene_name_id_dict.json"));
  EXPECT_EQ(pickle.generation, GeneformerGeneration::v1);
  EXPECT_EQ(pickle.tokens.size(), 25426);
  EXPECT_EQ(pickle.medians, json.medians);
  EXPECT_EQ(pickle.tokens.json_text(), json.tokens.json_text());
  EXPECT_EQ(json.mapping.size(), 21245u);  // symbols that lead to a token
  EXPECT_EQ(pickle.find("ENSG00000000003"), 2);
  EXPECT_EQ(json.find("TSPAN6"), 2);
  pickle.require_model(GeneformerConfig{}, "the published one");
}

}  // namespace
}  // namespace scgraft
