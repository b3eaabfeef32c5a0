// SPDX-License-Identifier: Apache-2.0
#include "io/flat_dictionary.h"

#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using pickled::integer;
using pickled::text;

std::vector<FlatEntry> parse(const std::string& bytes) {
  return parse_flat_dictionary(bytes_of(bytes), FileKind::model, "d");
}

void expect_refused(const std::string& bytes, const std::string& part) {
  expect_model_error("E-DICTIONARY", part, [&] { parse(bytes); });
}

TEST(FlatDictionary, ReadsJsonByKeyAndPicklesInTheirOrder) {
  const auto json = parse(R"({"b": 1, "a": 2.5, "c": "x"})");
  ASSERT_EQ(json.size(), 3u);
  EXPECT_EQ(json[0].key, "a");
  EXPECT_EQ(std::get<double>(json[0].value), 2.5);
  EXPECT_EQ(std::get<int64_t>(json[1].value), 1);
  EXPECT_EQ(std::get<std::string>(json[2].value), "x");
  const auto pickle = parse(pickled::whole(pickled::dict(
      {{"b", integer(1)}, {"a", std::string("G\x40\x04\0\0\0\0\0\0", 9)}, {"c", text("x")}})));
  ASSERT_EQ(pickle.size(), 3u);
  EXPECT_EQ(pickle[0].key, "b");
  EXPECT_EQ(std::get<int64_t>(pickle[0].value), 1);
  EXPECT_EQ(std::get<double>(pickle[1].value), 2.5);
  EXPECT_EQ(std::get<std::string>(pickle[2].value), "x");
}

TEST(FlatDictionary, AnythingElseIsRefused) {
  expect_refused("[1]", "holds no dictionary");
  expect_refused(R"({"a": null})", "the key \"a\" with a value that is neither");
  expect_refused(R"({"a": [1]})", "the key \"a\" with a value that is neither");
  expect_refused(pickled::whole("]"), "holds no dictionary");
  expect_refused(pickled::whole(std::string("}").append(integer(1) + integer(1) + "s")),
                 "a key that is no text");
  expect_refused(pickled::whole(pickled::dict({{"a", "N"}})), "the key \"a\" with a value");
  expect_refused(pickled::whole(pickled::dict({{"a", integer(1)}, {"a", integer(2)}})),
                 "the key \"a\" twice");
  expect_model_error("E-JSON-DUPLICATE", "a", [] { parse(R"({"a": 1, "a": 2})"); });
  expect_model_error("E-PICKLE-GLOBAL", "os.system",
                     [] { parse(pickled::whole(pickled::global("os", "system") + ")R")); });
  expect_file_error(ExitCode::data, "E-DICTIONARY", "no dictionary", [] {
    const std::string bytes = "[]";
    parse_flat_dictionary(bytes_of(bytes), FileKind::data, "d");
  });
}

// The published pickles (protocol 4, NumPy scalars) and the same numbers as JSON.
TEST(FlatDictionary, PublishedPicklesAreTheirJsonCopies) {
  for (const char* name : {"token_dictionary", "gene_median_dictionary"}) {
    const std::string stem = cat("data/vocab/geneformer_v1_", name);
    SCGRAFT_NEEDS_SHARED(stem + ".pkl");
    auto pickle = read_flat_dictionary(shared_path(stem + ".pkl"), FileKind::model);
    const auto json = read_flat_dictionary(shared_path(stem + ".json"), FileKind::model);
    std::sort(pickle.begin(), pickle.end(),
              [](const FlatEntry& a, const FlatEntry& b) { return a.key < b.key; });
    ASSERT_EQ(pickle.size(), json.size());
    for (size_t i = 0; i < json.size(); ++i) {
      EXPECT_EQ(pickle[i].key, json[i].key);
      EXPECT_EQ(pickle[i].value, json[i].value) << json[i].key;
    }
  }
}

}  // namespace
}  // namespace scgraft
