// SPDX-License-Identifier: Apache-2.0
#include "io/output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "io/text.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

TEST(OutputFile, AppearsOnlyWhenCommitted) {
  TemporaryFolder folder;
  const std::string path = folder / "result.csv";
  OutputFile out(path, Overwrite::refuse);
  EXPECT_EQ(out.temporary(), folder / cat(".result.csv.tmp-", ::getpid()));
  out.write("a,b\n");
  EXPECT_FALSE(std::filesystem::exists(path));
  struct stat info;
  ASSERT_EQ(::stat(out.temporary().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  out.write("1,2\n");
  out.commit();
  EXPECT_EQ(read_text(path), "a,b\n1,2\n");
  EXPECT_FALSE(std::filesystem::exists(out.temporary()));
}

TEST(OutputFile, FinishedFileHasTheModeOfTheUmask) {
  TemporaryFolder folder;
  const mode_t mask = ::umask(027);
  write_file(folder / "a", "x", Overwrite::refuse);
  ::umask(mask);
  struct stat info;
  ASSERT_EQ(::stat((folder / "a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST(OutputFile, LeavesNothingBehindWithoutCommit) {
  TemporaryFolder folder;
  { OutputFile(folder / "result.csv", Overwrite::refuse).write("half"); }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(OutputFile, RefusesAnExistingFileAndKeepsIt) {
  TemporaryFolder folder;
  const std::string path = folder / "old.txt";
  write_file(path, "old", Overwrite::refuse);
  try {
    write_file(path, "new", Overwrite::refuse);
    FAIL() << "an existing file was replaced";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), "E-EXISTS");
    EXPECT_EQ(error.exit_code(), ExitCode::usage);
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("--force"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("old.txt"));
  }
  EXPECT_EQ(read_text(path), "old");
  write_file(path, "new", Overwrite::replace);
  EXPECT_EQ(read_text(path), "new");
}

TEST(OutputFile, RefusesAFileThatAppearedMeanwhile) {
  TemporaryFolder folder;
  const std::string path = folder / "race.txt";
  OutputFile out(path, Overwrite::refuse);
  out.write("mine");
  std::ofstream(path) << "theirs";
  EXPECT_THROW(out.commit(), ConfigError);
  EXPECT_EQ(read_text(path), "theirs");
}

TEST(OutputFile, ReplacesALinkInsteadOfFollowingIt) {
  TemporaryFolder folder;
  std::ofstream(folder / "victim") << "precious";
  std::filesystem::create_symlink(folder / "victim", folder / "link");
  write_file(folder / "link", "new", Overwrite::replace);
  EXPECT_EQ(read_text(folder / "victim"), "precious");
  EXPECT_EQ(read_text(folder / "link"), "new");
  EXPECT_FALSE(std::filesystem::is_symlink(folder / "link"));
}

TEST(OutputFile, SurvivesAWriterThatReplacesTheTemporaryFile) {
  TemporaryFolder folder;
  OutputFile out(folder / "a.zip", Overwrite::refuse);
  std::ofstream(folder / "other") << "content";
  std::filesystem::rename(folder / "other", out.temporary());
  out.commit();
  EXPECT_EQ(read_text(folder / "a.zip"), "content");
}

TEST(OutputFile, MissingFolderIsAStorageErrorAtOnce) {
  TemporaryFolder folder;
  try {
    OutputFile out(folder / "no/such/a.txt", Overwrite::refuse);
    FAIL() << "no error";
  } catch (const StorageError& error) {
    EXPECT_EQ(error.code(), "E-NO-FOLDER");
    EXPECT_EQ(error.exit_code(), ExitCode::storage);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("no/such/a.txt: No such file"));
  }
  EXPECT_THROW(OutputFile(folder.path(), Overwrite::replace), ConfigError);
}

TEST(OutputFile, FullDiskNamesPathAndReason) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "this machine has no /dev/full";
  TemporaryFolder folder;
  OutputFile out(folder / "big.bin", Overwrite::refuse);
  // The descriptor behind the temporary file is exchanged for a device that is always full.
  const int full = ::open("/dev/full", O_WRONLY);
  struct stat wanted;
  ASSERT_EQ(::stat(out.temporary().c_str(), &wanted), 0);
  for (int descriptor = 3; descriptor < 64; ++descriptor) {
    struct stat info;
    if (::fstat(descriptor, &info) == 0 && info.st_ino == wanted.st_ino &&
        info.st_dev == wanted.st_dev)
      ::dup2(full, descriptor);
  }
  ::close(full);
  try {
    out.write("x");
    FAIL() << "no error";
  } catch (const StorageError& error) {
    EXPECT_EQ(error.code(), "E-NO-SPACE");
    EXPECT_THAT(error.what(), ::testing::HasSubstr("big.bin: No space left"));
  }
}

TEST(Directory, IsMadeWithItsParents) {
  TemporaryFolder folder;
  make_directory(folder / "a/b/c");
  make_directory(folder / "a/b/c");
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a/b/c"));
  std::ofstream(folder / "file") << "";
  EXPECT_THROW(make_directory(folder / "file/x"), StorageError);
}

TEST(Escaped, NoControlCharacterGetsThrough) {
  EXPECT_EQ(escaped("gene\n\x1b[31m\x7f\\"), "gene\\n\\x1b[31m\\x7f\\\\");
  EXPECT_EQ(escaped("\xc3\xa9 \xff \xc2\x9b"), "\xc3\xa9 \\xff \\xc2\\x9b");
  EXPECT_EQ(escaped("abcdef", 3), "abc...");
}

TEST(Utf8, RejectsOverlongSurrogatesAndCutSequences) {
  EXPECT_TRUE(is_utf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
  for (const char* bad : {"\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc3",
                          "\x80", "\xf0\x80\x80\x80", "\xe2\x82"})
    EXPECT_FALSE(is_utf8(bad));
}

}  // namespace
}  // namespace scgraft
