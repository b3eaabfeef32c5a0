// SPDX-License-Identifier: Apache-2.0
#include "io/text.h"

#include <gtest/gtest.h>

namespace scgraft {
namespace {

using namespace std::string_literals;

// The borders of table 3-7 of the Unicode Standard.
TEST(Text, KnowsWellFormedUtf8) {
  for (const std::string& good :
       {""s, "a"s, "\x7f"s, "\0"s, "\xc2\x80"s, "\xdf\xbf"s, "\xe0\xa0\x80"s, "\xed\x9f\xbf"s,
        "\xee\x80\x80"s, "\xef\xbf\xbf"s, "\xf0\x90\x80\x80"s, "\xf4\x8f\xbf\xbf"s,
        "na\xc3\xafve \xe2\x82\xac \xf0\x9f\xa7\xac"s})
    EXPECT_TRUE(is_utf8(good)) << escaped(good);
  for (const std::string& bad : {"\x80"s,
                                 "\xbf"s,
                                 "\xc0\x80"s,
                                 "\xc1\xbf"s,
                                 "\xc2"s,
                                 "\xc2\x7f"s,
                                 "\xc2\xc0"s,
                                 "\xe0\x9f\xbf"s,
                                 "\xe0\x80\x80"s,
                                 "\xed\xa0\x80"s,
                                 "\xed\xbf\xbf"s,
                                 "\xe2\x82"s,
                                 "\xe2\x82z"s,
                                 "\xf0\x8f\xbf\xbf"s,
                                 "\xf4\x90\x80\x80"s,
                                 "\xf5\x80\x80\x80"s,
                                 "\xf0\x9f\xa7"s,
                                 "\xfe"s,
                                 "\xff"s,
                                 "a\x80z"s})
    EXPECT_FALSE(is_utf8(bad)) << escaped(bad);
}

TEST(Text, EscapesWhatATerminalWouldObey) {
  EXPECT_EQ(escaped("plain \xc3\xa9 text"), "plain \xc3\xa9 text");
  EXPECT_EQ(escaped("a\nb\tc\\d"), "a\\nb\\tc\\\\d");
  EXPECT_EQ(escaped("\x1b[31mred\x07\r\x7f\0"s), "\\x1b[31mred\\x07\\x0d\\x7f\\x00");
  EXPECT_EQ(escaped("\xc2\x9b"
                    "31m"),
            "\\xc2\\x9b31m");  // an escape of one character
  EXPECT_EQ(escaped("\xc2\xa0"), "\xc2\xa0");
  EXPECT_EQ(escaped("\xff\xc3("), "\\xff\\xc3(");
  EXPECT_EQ(escaped(""), "");
}

TEST(Text, LongTextEndsEarlyAndInWholeCharacters) {
  EXPECT_EQ(escaped("abcdef", 6), "abcdef");
  EXPECT_EQ(escaped("abcdefg", 6), "abcdef...");
  EXPECT_EQ(escaped("ab\xe2\x82\xac"
                    "cd",
                    3),
            "ab\xe2\x82\xac...");
  EXPECT_EQ(escaped(std::string(1000, 'x')).size(), 203u);
  EXPECT_TRUE(is_utf8(escaped(std::string(1000, '\xff'))));
}

}  // namespace
}  // namespace scgraft
