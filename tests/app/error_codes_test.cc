// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <string>

#include "tests/io/files.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

// Code -> a place that has it.
using Codes = std::map<std::string, std::string>;

void collect(const std::string& text, const std::regex& pattern, const std::string& place,
             Codes& codes) {
  for (std::sregex_iterator hit(text.begin(), text.end(), pattern), end; hit != end; ++hit)
    codes.emplace((*hit)[1], place);
}

Codes in_source() {
  const std::regex pattern("\"([EW]-[A-Z0-9]+(-[A-Z0-9]+)*)\"");
  Codes codes;
  for (const char* layer : {"runtime", "kernels", "io", "model", "adapters", "training", "app"}) {
    const fs::path folder = fs::path(SCGRAFT_SOURCE_DIR) / layer;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".cc" || extension == ".h")
        collect(read_text(entry.path().string()), pattern, entry.path().string(), codes);
    }
  }
  return codes;
}

Codes in_page() {
  const std::string page = (fs::path(SCGRAFT_SOURCE_DIR) / "docs/errors.md").string();
  Codes codes;
  collect(read_text(page), std::regex("(?:^|\n)\\| ([EW]-[A-Z0-9-]+) \\|"), page, codes);
  return codes;
}

TEST(ErrorCodes, EveryCodeOfTheSourceHasARowInThePage) {
  const Codes source = in_source();
  const Codes page = in_page();
  ASSERT_GT(source.size(), 50U);
  for (const auto& [code, place] : source)
    EXPECT_TRUE(page.contains(code)) << code << " of " << place << " is not in docs/errors.md";
}

TEST(ErrorCodes, EveryRowOfThePageIsACodeOfTheSource) {
  const Codes source = in_source();
  for (const auto& [code, place] : in_page())
    EXPECT_TRUE(source.contains(code)) << code << " is thrown nowhere";
}

}  // namespace
}  // namespace scgraft
