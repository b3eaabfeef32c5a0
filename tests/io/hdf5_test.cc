// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5.h"

#include <gmock/gmock.h>
#include <hdf5.h>

#include <fstream>

#include "io/hdf5_copy.h"
#include "io/hdf5_list.h"
#include "io/output.h"
#include "tests/io/h5ad_fixture.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;

std::string write_file_with(const std::string& path,
                            const std::function<void(hdf5::OutNode&, hdf5::OutFile&)>& fill) {
  hdf5::OutFile file(path, path);
  {
    hdf5::OutNode root = hdf5::OutNode::root(file);
    fill(root, file);
  }
  file.close();
  return path;
}

TEST(Hdf5, RefusesLinksThatLeaveTheirPlace) {
  TemporaryFolder folder;
  write_file_with(folder / "other.h5",
                  [](hdf5::OutNode& root, hdf5::OutFile&) { root.add_integer("secret", 7); });
  const std::string path =
      write_file_with(folder / "a.h5", [&](hdf5::OutNode& root, hdf5::OutFile&) {
        hdf5::OutNode group = root.add_group("group", "dict", "0.1.0");
        root.add_integer("value", 1);
        H5Lcreate_soft("/value", root.id(), "soft", H5P_DEFAULT, H5P_DEFAULT);
        H5Lcreate_soft("/nowhere", root.id(), "dangling", H5P_DEFAULT, H5P_DEFAULT);
        H5Lcreate_external((folder / "other.h5").c_str(), "/secret", group.id(), "away",
                           H5P_DEFAULT, H5P_DEFAULT);
        H5Lcreate_external((folder / "other.h5").c_str(), "/", root.id(), "door", H5P_DEFAULT,
                           H5P_DEFAULT);
        H5Lcreate_hard(root.id(), "value", root.id(), "same", H5P_DEFAULT, H5P_DEFAULT);
      });
  const hdf5::Node root = hdf5::Node::open(path);
  expect_data_error("E-HDF5-LINK", "soft link", [&] { root.child("soft"); });
  expect_data_error("E-HDF5-LINK", "soft link", [&] { root.child("dangling"); });
  expect_data_error("E-HDF5-LINK", "another file", [&] { root.child("group/away"); });
  expect_data_error("E-HDF5-LINK", "another file", [&] { root.child("door/secret"); });
  EXPECT_EQ(root.child("same").read_all<int64_t>()[0], 1);
  expect_data_error("E-H5AD-MISSING", "nothing", [&] { root.child("nothing"); });
}

TEST(Hdf5, RefusesDataKeptInAnotherFile) {
  TemporaryFolder folder;
  write_file(folder / "raw.bin", std::string(64, 'x'), Overwrite::refuse);
  const std::string path =
      write_file_with(folder / "a.h5", [&](hdf5::OutNode& root, hdf5::OutFile&) {
        const hsize_t size = 8;
        const hdf5::Handle space(H5Screate_simple(1, &size, nullptr));
        const hdf5::Handle create(H5Pcreate(H5P_DATASET_CREATE));
        ASSERT_GE(H5Pset_external(create.get(), (folder / "raw.bin").c_str(), 0, 64), 0);
        const hdf5::Handle made(H5Dcreate2(root.id(), "data", H5T_STD_I64LE, space.get(),
                                           H5P_DEFAULT, create.get(), H5P_DEFAULT));
        ASSERT_TRUE(made.valid());
      });
  expect_data_error("E-HDF5-EXTERNAL", "data", [&] { hdf5::Node::open(path).child("data"); });
}

TEST(Hdf5, TellsWhatIsNotAFile) {
  TemporaryFolder folder;
  expect_data_error("E-NO-FILE", "there is no file", [&] { hdf5::Node::open(folder / "none"); });
  expect_data_error("E-NOT-HDF5", "a folder", [&] { hdf5::Node::open(folder / ""); });
  write_file(folder / "text.h5ad", "cell,gene\n", Overwrite::refuse);
  expect_data_error("E-NOT-HDF5", "something else",
                    [&] { hdf5::Node::open(folder / "text.h5ad"); });
  write_file(folder / "empty.h5ad", "", Overwrite::refuse);
  expect_data_error("E-NOT-HDF5", "something else",
                    [&] { hdf5::Node::open(folder / "empty.h5ad"); });
}

// Cut anywhere, a file gives a DataError and neither a crash nor wrong values.
TEST(Hdf5, ATruncatedFileIsAnError) {
  TemporaryFolder folder;
  const std::string whole = write_h5ad(folder / "a.h5ad", 50, 20, [](hdf5::OutNode& root) {
    const int64_t shape[] = {50, 20};
    std::vector<float> x(1000);
    std::iota(x.begin(), x.end(), 0.f);
    root.add_array<float>("X", shape, x);
  });
  const std::vector<float> want = dense(H5ad::open(whole), "X");
  std::string bytes;
  {
    std::ifstream file(whole, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  int refused = 0;
  for (size_t size = 0; size < bytes.size(); size += 97) {
    write_file(folder / "cut.h5ad", bytes.substr(0, size), Overwrite::replace);
    try {
      const H5ad file = H5ad::open(folder / "cut.h5ad");
      EXPECT_EQ(dense(file, "X"), want) << size;
    } catch (const DataError& error) {
      EXPECT_TRUE(error.code() == "E-NOT-HDF5" || error.code() == "E-HDF5-READ") << error.what();
      EXPECT_FALSE(error.hint().empty());
      ++refused;
    }
  }
  EXPECT_EQ(refused, static_cast<int>((bytes.size() + 96) / 97));
}

TEST(Hdf5, ReadsConvertAndSaturate) {
  TemporaryFolder folder;
  const std::string path =
      write_file_with(folder / "a.h5", [](hdf5::OutNode& root, hdf5::OutFile&) {
        root.add_array("wide", std::vector<int64_t>{-1, 300, int64_t{1} << 40});
        root.add_array("real", std::vector<double>{0.5, 2, -3});
        root.add_booleans("flag", std::vector<uint8_t>{1, 0});
        root.add_text("word", "\xC3\xA9");
      });
  const hdf5::Node root = hdf5::Node::open(path);
  EXPECT_THAT(root.child("wide").read_all<int32_t>(), ElementsAre(-1, 300, INT32_MAX));
  EXPECT_THAT(root.child("wide").read_all<uint8_t>(), ElementsAre(0, 255, 255));
  EXPECT_THAT(root.child("real").read_all<float>(), ElementsAre(0.5f, 2.f, -3.f));
  EXPECT_THAT(root.child("flag").read_all<uint8_t>(), ElementsAre(1, 0));
  EXPECT_THAT(root.child("word").read_strings(), ElementsAre("\xC3\xA9"));
  EXPECT_EQ(root.child("wide").type().name(), "int64");
  EXPECT_EQ(root.child("flag").type().name(), "bool");
  std::vector<int64_t> middle(2);
  root.child("wide").read<int64_t>(1, middle);
  EXPECT_THAT(middle, ElementsAre(300, int64_t{1} << 40));
  expect_data_error("E-H5AD-LAYOUT", "group", [&] { root.child("wide").names(); });
}

TEST(Hdf5, AttributesAreReadByKind) {
  TemporaryFolder folder;
  const std::vector<std::string> many(20000, "a column");  // beyond 64 KiB
  const std::string path =
      write_file_with(folder / "a.h5", [&](hdf5::OutNode& root, hdf5::OutFile&) {
        root.set_text("one", "word");
        root.set_texts("many", many);
        root.set_texts("none", {});
        const int64_t shape[] = {3, 4};
        root.set_integers("shape", shape);
        root.set_boolean("ordered", true);
        root.set_text("one", "again");  // replaced
      });
  const hdf5::Node root = hdf5::Node::open(path);
  EXPECT_EQ(root.text("one"), "again");
  EXPECT_EQ(root.texts("many"), many);
  EXPECT_TRUE(root.texts("none").empty());
  EXPECT_THAT(root.integers("shape"), ElementsAre(3, 4));
  EXPECT_THAT(root.integers("ordered"), ElementsAre(1));
  EXPECT_EQ(root.text("absent"), std::nullopt);
  EXPECT_TRUE(root.integers("absent").empty());
}

TEST(GrowingList, HoldsWhatWasAppendedInAnyPieces) {
  TemporaryFolder folder;
  const std::string path =
      write_file_with(folder / "a.h5", [](hdf5::OutNode& root, hdf5::OutFile& file) {
        auto numbers = hdf5::GrowingList::of<int16_t>(file, root, "numbers",
                                                      {.chunk = 3, .compression = {.gzip = 1}});
        auto words = hdf5::GrowingList::of_texts(file, root, "words", {.chunk = 2});
        auto flags = hdf5::GrowingList::of_booleans(file, root, "flags");
        auto none = hdf5::GrowingList::of<double>(file, root, "none");
        for (int16_t i = 0; i < 10; ++i) {
          const std::vector<int16_t> value{i, static_cast<int16_t>(-i)};
          numbers.append(std::span<const int16_t>(value));
          const std::vector<std::string> word{std::string(static_cast<size_t>(i), 'w')};
          words.append(std::span<const std::string>(word));
        }
        numbers.append(std::span<const int16_t>());
        const std::vector<uint8_t> truth{1, 0, 1};
        flags.append(std::span<const uint8_t>(truth));
        EXPECT_EQ(numbers.size(), 20);
        const std::vector<std::string> zero{std::string("a\0b", 3)};
        EXPECT_THROW(words.append(std::span<const std::string>(zero)), DataError);
      });
  const hdf5::Node root = hdf5::Node::open(path);
  EXPECT_EQ(root.child("numbers").size(), 20);
  EXPECT_EQ(root.child("numbers").read_all<int32_t>()[19], -9);
  EXPECT_EQ(root.child("words").read_strings()[9], "wwwwwwwww");
  EXPECT_EQ(root.child("words").text("encoding-type"), "string-array");
  EXPECT_THAT(root.child("flags").read_all<uint8_t>(), ElementsAre(1, 0, 1));
  EXPECT_EQ(root.child("flags").type().name(), "bool");
  EXPECT_EQ(root.child("none").size(), 0);
}

TEST(CopyFile, KeepsAttributesLinksAndReferences) {
  TemporaryFolder folder;
  const std::string path =
      write_file_with(folder / "a.h5", [](hdf5::OutNode& root, hdf5::OutFile&) {
        root.set_text("encoding-type", "anndata");
        root.set_texts("names", {"a", "bb"});
        const int64_t three[] = {1, 2, 3};
        root.set_integers("numbers", three);
        hdf5::OutNode group = root.add_group("group", "dict", "0.1.0");
        group.add_integer("value", 5);
        H5Lcreate_soft("/group/value", root.id(), "soft", H5P_DEFAULT, H5P_DEFAULT);
        hobj_ref_t reference;
        ASSERT_GE(H5Rcreate(&reference, group.id(), "value", H5R_OBJECT, -1), 0);
        const hdf5::Handle space(H5Screate(H5S_SCALAR));
        const hdf5::Handle attribute(H5Acreate2(group.id(), "points", H5T_STD_REF_OBJ, space.get(),
                                                H5P_DEFAULT, H5P_DEFAULT));
        ASSERT_GE(H5Awrite(attribute.get(), H5T_STD_REF_OBJ, &reference), 0);
      });
  {
    hdf5::OutFile copy(folder / "b.h5", "b.h5");
    hdf5::copy_file(hdf5::Node::open(path), copy);
    copy.close();
  }
  const hdf5::Node root = hdf5::Node::open(folder / "b.h5");
  EXPECT_EQ(root.text("encoding-type"), "anndata");
  EXPECT_THAT(root.texts("names"), ElementsAre("a", "bb"));
  EXPECT_THAT(root.integers("numbers"), ElementsAre(1, 2, 3));
  EXPECT_THAT(root.names(), ElementsAre("group", "soft"));
  expect_data_error("E-HDF5-LINK", "soft link", [&] { root.child("soft"); });
  // The reference leads to the copied value under its own name, not to a second copy.
  const hdf5::Node group = root.child("group");
  const hdf5::Handle attribute(H5Aopen(group.id(), "points", H5P_DEFAULT));
  hobj_ref_t reference;
  ASSERT_GE(H5Aread(attribute.get(), H5T_STD_REF_OBJ, &reference), 0);
  const hdf5::Handle target(H5Rdereference2(group.id(), H5P_DEFAULT, H5R_OBJECT, &reference));
  ASSERT_TRUE(target.valid());
  std::vector<char> name(100);
  ASSERT_GT(H5Iget_name(target.get(), name.data(), name.size()), 0);
  EXPECT_STREQ(name.data(), "/group/value");
}

}  // namespace
}  // namespace scgraft
