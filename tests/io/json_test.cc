// SPDX-License-Identifier: Apache-2.0
#include "io/json.h"

#include <cmath>
#include <limits>

#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

using nlohmann::json;

json parse(const std::string& text, JsonLimits limits = {}) {
  return parse_json(bytes_of(text), "t.json", FileKind::model, limits);
}
void expect_bad(const std::string& text, const std::string& code, const std::string& part,
                JsonLimits limits = {}) {
  SCOPED_TRACE(text.substr(0, 60));
  expect_model_error(code, part, [&] { parse(text, limits); });
}

TEST(Json, ReadsWhatTheStandardAllows) {
  const json value = parse(R"( {"a": [1, -2.5e3, true, false, null], "\u00e9": "x\n\"", "": {}} )");
  EXPECT_EQ(value["a"], json({1, -2500.0, true, false, nullptr}));
  EXPECT_EQ(value["\xc3\xa9"], "x\n\"");
  EXPECT_EQ(value[""], json::object());
  EXPECT_EQ(parse("18446744073709551615").get<uint64_t>(), UINT64_MAX);
  EXPECT_EQ(parse("[[1], [1]]"), json({{1}, {1}}));
  EXPECT_EQ(parse(R"({"a": {"k": 1}, "b": {"k": 2}})")["b"]["k"], 2);  // a key of each
}

TEST(Json, RefusesEverythingElseWithItsPlace) {
  for (const char* text :
       {"",        " ",    "{",        "[1,]",       "{\"a\": 1,}", "{'a': 1}",     "{a: 1}",
        "[1] [2]", "[1]x", "NaN",      "[Infinity]", "01",          "+1",           ".5",
        "1.",      "\"a",  "\"\x01\"", "\"\\x41\"",  "// note\n1",  "/* note */ 1", "\"\\ud800\"",
        "tru",     "nul"})
    expect_bad(text, "E-JSON", "not valid JSON at byte");
  for (const char* text : {"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "{\"\xfe\": 1}"})
    expect_bad(text, "E-JSON", "not valid JSON");
  expect_bad("[1, 2, oops]", "E-JSON", "byte 8 of 12");
  expect_bad("1e999", "E-JSON", "not valid JSON");
  expect_bad("[\"\x1b[2J", "E-JSON", "");
}

TEST(Json, AKeyTwiceIsAnError) {
  expect_bad(R"({"a": 1, "b": 2, "a": 3})", "E-JSON-DUPLICATE", "\"a\" twice");
  expect_bad(R"([{"x": {"k": 1, "k": 1}}])", "E-JSON-DUPLICATE", "\"k\" twice");
  expect_bad(R"({"a": 1, "\u0061": 2})", "E-JSON-DUPLICATE", "\"a\" twice");
  expect_bad("{\"\\u001b[2J\": 1, \"\\u001b[2J\": 1}", "E-JSON-DUPLICATE", "\\x1b[2J");
}

TEST(Json, DepthAndSizeAreLimited) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_NO_THROW(parse(nested(64)));
  expect_bad(nested(65), "E-LIMIT", "deeper than 64");
  expect_bad(std::string(10'000'000, '['), "E-LIMIT", "deeper than 64");
  EXPECT_NO_THROW(parse(nested(3), {.bytes = 6, .depth = 3}));
  expect_bad(nested(4), "E-LIMIT", "deeper than 3", {.bytes = 100, .depth = 3});
  expect_bad(nested(4), "E-LIMIT", "8 bytes, the limit is 7", {.bytes = 7, .depth = 9});
}

TEST(Json, FilesAreNamedAndOfTheirKind) {
  TemporaryFolder folder;
  const std::string path = put(folder / "a.json", "{");
  expect_file_error(ExitCode::data, "E-JSON", "a.json", [&] { read_json(path, FileKind::data); });
  expect_file_error(ExitCode::model, "E-JSON", "a.json", [&] { read_json(path, FileKind::model); });
  expect_file_error(ExitCode::data, "E-FILE-MISSING", "none.json",
                    [&] { read_json(folder / "none.json", FileKind::data); });
  expect_file_error(ExitCode::data, "E-FILE-TYPE", "folder",
                    [&] { read_json(folder.path(), FileKind::data); });
}

TEST(Json, AZeroByteIsNoEnd) {
  expect_bad(std::string("{}\0{}", 5), "E-JSON", "at byte 3 of 5");
  expect_bad(std::string("{}\0", 3), "E-JSON", "a zero byte");
}

TEST(Json, NumbersThatItHasNotBecomeNullWithAWord) {
  const double infinity = std::numeric_limits<double>::infinity();
  json object;
  set_number(object, "a", std::nan(""));
  set_number(object, "b", -infinity);
  set_number(object, "c", 0.5);
  EXPECT_EQ(object, (json{{"a", nullptr},
                          {"a_nonfinite", "nan"},
                          {"b", nullptr},
                          {"b_nonfinite", "-inf"},
                          {"c", 0.5}}));
  const json nested = {{"list", {{{"x", infinity}}, std::nan(""), 1}}, {"n", 3}};
  EXPECT_EQ(with_finite_numbers(nested),
            (json{{"list", {{{"x", nullptr}, {"x_nonfinite", "inf"}}, nullptr, 1}}, {"n", 3}}));
}

TEST(Json, WritesTheSameTextForTheSameValue) {
  TemporaryFolder folder;
  const json value = {{"b", 1}, {"a", {1.5, nullptr, "\xc3\xa9\n"}}, {"n", int64_t{1} << 60}};
  write_json(folder / "a.json", value, Overwrite::refuse);
  EXPECT_EQ(read_text(folder / "a.json"),
            "{\n  \"a\": [\n    1.5,\n    null,\n    \"\xc3\xa9\\n\"\n  ],\n  \"b\": 1,\n"
            "  \"n\": 1152921504606846976\n}\n");
  EXPECT_EQ(read_json(folder / "a.json", FileKind::model), value);
  EXPECT_EQ(json_text("\xff"), "\"\xef\xbf\xbd\"\n");  // what is no UTF-8 cannot be written as such
  for (const double x : {0.1, 1e-300, 1.7976931348623157e308, -0.0, 1.0 / 3})
    EXPECT_EQ(parse(json_text(x)).get<double>(), x);
}

}  // namespace
}  // namespace scgraft
