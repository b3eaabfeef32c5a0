// SPDX-License-Identifier: Apache-2.0
#include "io/vocabulary.h"

#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

Vocabulary parse(const std::string& text) {
  return Vocabulary::parse(bytes_of(text), "vocab.json");
}

TEST(Vocabulary, ReadsIdsInAnyOrder) {
  const Vocabulary v = parse(R"({"CD3E": 2, "<pad>": 0, "MT-CO1": 1})");
  EXPECT_EQ(v.size(), 3);
  EXPECT_EQ(v.token(0), "<pad>");
  EXPECT_EQ(v.token(1), "MT-CO1");
  EXPECT_EQ(v.token(2), "CD3E");
  EXPECT_EQ(v.find("CD3E"), 2);
  EXPECT_EQ(v.id("<pad>"), 0);
  EXPECT_EQ(v.find("cd3e"), std::nullopt);
  EXPECT_EQ(v.find("CD3E "), std::nullopt);
  EXPECT_FALSE(v.contains(""));
  expect_model_error("E-VOCAB", "of 3 tokens has no \"<cls>\"", [&] { v.id("<cls>"); });
  EXPECT_THROW(v.token(3), std::out_of_range);
  EXPECT_EQ(parse("{}").size(), 0);
}

TEST(Vocabulary, IdsAreEachOnceFromZero) {
  const auto bad = [](const std::string& text, const std::string& code, const std::string& part) {
    SCOPED_TRACE(text);
    expect_model_error(code, part, [&] { parse(text); });
  };
  bad(R"({"a": 0, "b": 0})", "E-VOCAB", "\"a\" and \"b\" share the id 0");
  bad(R"({"a": 0, "b": 2})", "E-VOCAB", "\"b\" has the id 2; 2 tokens need the ids 0 to 1");
  bad(R"({"a": -1})", "E-VOCAB", "id -1");
  bad(R"({"a": 0.0})", "E-VOCAB", "id 0.0");
  bad(R"({"a": "0"})", "E-VOCAB", "id \"0\"");
  bad(R"({"a": null})", "E-VOCAB", "id null");
  bad(R"({"a": 18446744073709551615})", "E-VOCAB", "");
  bad(R"({"a": 4294967296})", "E-VOCAB", "id 4294967296");
  bad(R"(["a", "b"])", "E-VOCAB", "an object");
  bad(R"({"a": 0, "a": 1})", "E-JSON-DUPLICATE", "\"a\" twice");
  bad(R"({"a": 0)", "E-JSON", "not valid JSON");
}

TEST(Vocabulary, AppendsWhatIsAbsent) {
  Vocabulary v = parse(R"({"g": 0, "<cls>": 1})");
  EXPECT_EQ(v.append("g"), 0);
  EXPECT_EQ(v.append("h"), 2);
  EXPECT_EQ(v.append("h"), 2);
  v.append_specials();
  EXPECT_EQ(v.size(), 5);
  EXPECT_EQ(v.id("<cls>"), 1);
  EXPECT_EQ(v.id("<pad>"), 3);
  EXPECT_EQ(v.id("<eoc>"), 4);
  v.append_specials();
  EXPECT_EQ(v.size(), 5);
  EXPECT_EQ(v.token(2), "h");
}

TEST(Vocabulary, TokensStayWhereTheyAreWhenItGrowsAndMoves) {
  Vocabulary v;
  for (int i = 0; i < 10'000; ++i) EXPECT_EQ(v.append(cat("gene", i)), i);
  const std::string* first = &v.token(0);
  const Vocabulary moved = std::move(v);
  EXPECT_EQ(&moved.token(0), first);
  EXPECT_EQ(moved.token(9'999), "gene9999");
  EXPECT_EQ(moved.id("gene1234"), 1234);
}

TEST(Vocabulary, WritesItsIdsInOrder) {
  const std::string text = R"({"\u0022quoted\\": 1, "naïve": 0})";
  const Vocabulary v = parse(text);
  EXPECT_EQ(v.json_text(), "{\n  \"na\xc3\xafve\": 0,\n  \"\\\"quoted\\\\\": 1\n}\n");
  const Vocabulary again = parse(v.json_text());
  for (int64_t i = 0; i < v.size(); ++i) EXPECT_EQ(again.token(i), v.token(i));
}

TEST(Vocabulary, ReadsThePublishedOnes) {
  SCGRAFT_NEEDS_SHARED("data/vocab/scgpt_default_gene_vocab.json");
  for (const char* name : {"scgpt_default_gene_vocab.json", "scgpt_default_census_vocab.json"}) {
    SCOPED_TRACE(name);
    const Vocabulary v = Vocabulary::open(shared_path(cat("data/vocab/", name)));
    EXPECT_GT(v.size(), 30'000);
    for (const char* gene : {"CD3E", "MT-CO1"}) EXPECT_EQ(v.token(v.id(gene)), gene);
  }
  const Vocabulary v = Vocabulary::open(shared_path("golden/scgpt_base/vocab.json"));
  EXPECT_TRUE(v.contains("<pad>") && v.contains("<cls>"));
}

}  // namespace
}  // namespace scgraft
