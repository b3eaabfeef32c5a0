// SPDX-License-Identifier: Apache-2.0
#include "io/append_file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

TEST(AppendFile, LinesAreThereAtOnceAndStay) {
  TemporaryFolder folder;
  const std::string path = put(folder / "log", "old\n");
  AppendFile log(path);
  EXPECT_EQ(log.path(), path);
  log.line("a");
  EXPECT_EQ(read_text(path), "old\na\n");
  log.line("");
  log.close();
  log.close();
  EXPECT_EQ(read_text(path), "old\na\n\n");
  expect_error("which is closed", [&] { log.line("b"); });
  EXPECT_EQ(read_text(path), "old\na\n\n");
}

TEST(AppendFile, LinesOutliveALogThatIsNotClosed) {
  TemporaryFolder folder;
  { AppendFile(folder / "log").line("a"); }
  EXPECT_EQ(read_text(folder / "log"), "a\n");
}

TEST(AppendFile, RefusesALineThatIsTwo) {
  TemporaryFolder folder;
  AppendFile log(folder / "log");
  expect_error("a line holds a newline", [&] { log.line("a\nb"); });
  EXPECT_EQ(read_text(folder / "log"), "");
}

TEST(AppendFile, NamesThePathThatCannotBeWritten) {
  TemporaryFolder folder;
  try {
    AppendFile log(folder / "none/log");
    FAIL() << "a file in a folder that is not there";
  } catch (const StorageError& error) {
    EXPECT_EQ(error.code(), "E-NO-FOLDER");
    EXPECT_THAT(error.what(), ::testing::HasSubstr(folder / "none/log"));
  }
  std::filesystem::create_symlink("elsewhere", folder / "link");
  EXPECT_THROW(AppendFile(folder / "link"), StorageError);
}

// A disk that is full: every write to /dev/full fails.
TEST(AppendFile, SaysWhenTheDiskIsFull) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  AppendFile log("/dev/full");
  try {
    log.line("a");
    FAIL() << "a line on a full disk";
  } catch (const StorageError& error) {
    EXPECT_EQ(error.code(), "E-NO-SPACE");
  }
}

}  // namespace
}  // namespace scgraft
