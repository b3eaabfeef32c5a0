// SPDX-License-Identifier: Apache-2.0
#include "io/output_folder.h"

#include "io/manifest.h"
#include "io/sha256.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

void write_one(const std::string& path, const std::string& text, Overwrite overwrite) {
  OutputFolder out(path, overwrite);
  write_file(out / "a.txt", text, Overwrite::refuse);
  out.commit();
}

TEST(OutputFolder, AppearsAsAWholeWithItsManifest) {
  TemporaryFolder folder;
  {
    OutputFolder out(folder / "new/", Overwrite::refuse);
    write_file(out / "b.txt", "two", Overwrite::refuse);
    write_file(out / "a.txt", "one", Overwrite::refuse);
    EXPECT_FALSE(fs::exists(folder / "new"));
    out.commit();
  }
  EXPECT_EQ(read_text(folder / "new/MANIFEST.sha256"),
            sha256("one") + "  a.txt\n" + sha256("two") + "  b.txt\n");
  EXPECT_EQ(read_text(folder / "new/a.txt"), "one");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(OutputFolder, WithoutCommitThereIsNothing) {
  TemporaryFolder folder;
  { OutputFolder out(folder / "new", Overwrite::refuse); }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  write_one(folder / "new", "old", Overwrite::refuse);
  {
    OutputFolder out(folder / "new", Overwrite::replace);
    write_file(out / "a.txt", "half", Overwrite::refuse);
  }
  EXPECT_EQ(read_text(folder / "new/a.txt"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(OutputFolder, ReplacesOnlyWhatItWrote) {
  TemporaryFolder folder;
  write_one(folder / "new", "old", Overwrite::refuse);
  put(folder / "new/left.txt", "of before");
  expect_file_error(ExitCode::usage, "E-EXISTS", "exists already",
                    [&] { write_one(folder / "new", "x", Overwrite::refuse); });
  write_one(folder / "new", "new", Overwrite::replace);
  EXPECT_EQ(read_text(folder / "new/a.txt"), "new");
  EXPECT_FALSE(fs::exists(folder / "new/left.txt"));

  put(folder / "file", "mine");
  fs::create_directories(folder / "mine/deep");
  fs::create_directory_symlink(folder / "new", folder / "link");
  for (const char* name : {"file", "mine", "link"}) {
    expect_file_error(ExitCode::usage, "E-OUTPUT", name,
                      [&] { write_one(folder / name, "x", Overwrite::replace); });
    expect_file_error(ExitCode::usage, "E-EXISTS", name,
                      [&] { write_one(folder / name, "x", Overwrite::refuse); });
  }
  EXPECT_EQ(read_text(folder / "new/a.txt"), "new");
  for (const char* name : {"", "/", ".", "..", "a/.."})
    expect_file_error(ExitCode::usage, "E-OUTPUT", "no name for a new folder",
                      [&] { write_one(name, "x", Overwrite::replace); });
}

TEST(OutputFolder, SomebodyElseMayBeFaster) {
  TemporaryFolder folder;
  OutputFolder out(folder / "new", Overwrite::refuse);
  write_file(out / "a.txt", "late", Overwrite::refuse);
  fs::create_directory(folder / "new");
  put(folder / "new/a.txt", "early");
  expect_file_error(ExitCode::usage, "E-EXISTS", "exists already", [&] { out.commit(); });
  EXPECT_EQ(read_text(folder / "new/a.txt"), "early");
}

TEST(OutputFolder, StorageErrorsSaySo) {
  TemporaryFolder folder;
  expect_file_error(ExitCode::storage, "E-NO-FOLDER", "nowhere",
                    [&] { OutputFolder(folder / "nowhere/new", Overwrite::refuse); });
}

TEST(Manifest, TellsWhatIsWrongWithEachFile) {
  TemporaryFolder folder;
  for (const char* name : {"changed", "good", "gone", "link", "with space"})
    put(folder / name, name);
  write_manifest(folder.path());
  for (const FileCheck& check : check_manifest(folder.path())) EXPECT_TRUE(check.ok());
  put(folder / "changed", "changeD");
  fs::remove(folder / "gone");
  fs::rename(folder / "link", folder / "target");
  fs::create_symlink("target", folder / "link");
  std::vector<std::string> faults;
  for (const FileCheck& check : check_manifest(folder.path()))
    faults.push_back(check.file + ": " + check.fault);
  using ::testing::HasSubstr;
  EXPECT_THAT(faults,
              ::testing::ElementsAre(HasSubstr("changed: has another content"), "gone: is missing",
                                     "good: ", "link: is not a regular file",
                                     "with space: ", "target: is not listed in MANIFEST.sha256"));
}

}  // namespace
}  // namespace scgraft
