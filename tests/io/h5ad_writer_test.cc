// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_writer.h"

#include <gmock/gmock.h>
#include <hdf5.h>

#include <fstream>
#include <iterator>

#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;

// 3 cells and 2 genes, with columns, a layer and an element that nobody knows.
std::string small_file(const std::string& path) {
  return write_h5ad(path, 3, 2, [](hdf5::OutNode& root) {
    add_sparse<float, int32_t, int32_t>(root, "X", "csr_matrix", 3, 2, {1, 2, 3}, {0, 1, 1},
                                        {0, 1, 2, 3});
    hdf5::OutNode obs = root.child("obs");
    obs.add_array<double>("age", std::vector<double>{1, 2, 3});
    obs.add_strings("label", std::vector<std::string>{"a", "b", "a"});
    obs.set_texts("column-order", {"label", "age"});
    root.add_group("uns", "dict", "0.1.0").add_text("title", "mine");
    root.add_group("mystery", "nobody-knows", "9.9").add_integer("answer", 42);
  });
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect_config_error(const std::string& code, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown, wanted " << code;
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_FALSE(error.hint().empty());
  }
}

TEST(H5adWriter, AddsEveryKindOfElement) {
  TemporaryFolder folder;
  H5adWriter out(small_file(folder / "in.h5ad"), folder / "out.h5ad", Overwrite::refuse);
  EXPECT_EQ(out.n_obs(), 3);
  EXPECT_EQ(out.n_vars(), 2);
  EXPECT_TRUE(out.has_obs("age"));
  EXPECT_FALSE(out.has_obsm("X_new"));
  out.add_categorical("type", std::vector<int32_t>{1, -1, 0}, {"B", "T"});
  out.add_real("conf", std::vector<float>{0.25f, 0.5f, 1});
  out.add_integer("count", std::vector<int64_t>{1, int64_t{1} << 40, -3});
  out.add_strings("name", std::vector<std::string>{"x", "", "\xC3\xA9"});
  out.add_booleans("good", std::vector<uint8_t>{1, 0, 1});
  out.add_var_booleans("in_model", std::vector<uint8_t>{0, 1});
  out.add_obsm("X_new", 2, std::vector<float>{1, 2, 3, 4, 5, 6});
  out.start_obsm("X_stream", 2);
  out.append_obsm(std::vector<float>{1, 2});
  out.append_obsm(std::vector<float>{3, 4, 5, 6});
  out.add_obsm_frame("probabilities", {"B", "T/NK"}, std::vector<float>{.5f, .5f, 1, 0, 0, 1});
  out.add_varm("genes", 1, std::vector<float>{7, 8});
  out.add_uns("run", json{{"seed", 7},
                          {"rate", 0.5},
                          {"exact", true},
                          {"nothing", nullptr},
                          {"names", {"a", "b"}},
                          {"sizes", {1, 2, 3}},
                          {"mixed", {1, 2.5}},
                          {"flags", {true, false}},
                          {"none", json::array()},
                          {"huge", UINT64_MAX},
                          {"inner", {{"deep", "yes"}}}});
  out.add_uns_strings("type_colors", {"#ff0000", "#00ff00"});
  out.commit();

  const H5ad file = H5ad::open(folder / "out.h5ad");
  EXPECT_THAT(file.obs().columns(),
              ElementsAre("label", "age", "type", "conf", "count", "name", "good"));
  const Column type = file.obs().read("type");
  EXPECT_EQ(type.text(0), "T");
  EXPECT_TRUE(type.is_missing(1));
  EXPECT_EQ(type.text(2), "B");
  EXPECT_EQ(file.obs().info("conf").stored, "float32");
  EXPECT_EQ(std::get<Reals>(file.obs().read("conf").values), (Reals{0.25, 0.5, 1}));
  EXPECT_EQ(std::get<Integers>(file.obs().read("count").values),
            (Integers{1, int64_t{1} << 40, -3}));
  EXPECT_EQ(file.obs().read("name").text(2), "\xC3\xA9");
  EXPECT_EQ(file.obs().info("good").kind, ColumnKind::boolean);
  EXPECT_THAT(file.var().columns(), ElementsAre("in_model"));
  EXPECT_EQ(file.obsm("X_new").values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(file.obsm("X_stream").values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
  const Frame frame(file.root().child("obsm/probabilities"), "obsm/probabilities");
  EXPECT_THAT(frame.columns(), ElementsAre("B", "T|NK"));
  EXPECT_EQ(std::get<Reals>(frame.read("B").values), (Reals{0.5, 1, 0}));
  EXPECT_EQ(frame.index(), file.obs().index());
  EXPECT_EQ(file.root().child("varm/genes").read_all<float>(), (std::vector<float>{7, 8}));
  const hdf5::Node run = file.root().child("uns/run");
  EXPECT_THAT(run.names(), ElementsAre("exact", "flags", "huge", "inner", "mixed", "names", "none",
                                       "rate", "seed", "sizes"));
  EXPECT_EQ(run.child("seed").read_all<int64_t>(), (std::vector<int64_t>{7}));
  EXPECT_EQ(run.child("rate").read_all<double>(), (std::vector<double>{0.5}));
  EXPECT_EQ(run.child("exact").type().name(), "bool");
  EXPECT_THAT(run.child("names").read_strings(), ElementsAre("a", "b"));
  EXPECT_EQ(run.child("sizes").type().name(), "int64");
  EXPECT_EQ(run.child("mixed").type().name(), "float64");
  EXPECT_EQ(run.child("none").size(), 0);
  EXPECT_THAT(run.child("huge").read_strings(), ElementsAre("18446744073709551615"));
  EXPECT_THAT(run.child("inner/deep").read_strings(), ElementsAre("yes"));
  EXPECT_THAT(file.root().child("uns/type_colors").read_strings(),
              ElementsAre("#ff0000", "#00ff00"));
}

TEST(H5adWriter, KeepsWhatItDoesNotKnow) {
  TemporaryFolder folder;
  H5adWriter out(small_file(folder / "in.h5ad"), folder / "out.h5ad", Overwrite::refuse);
  out.add_real("conf", std::vector<float>(3));
  out.commit();
  const H5ad in = H5ad::open(folder / "in.h5ad"), file = H5ad::open(folder / "out.h5ad");
  EXPECT_EQ(file.root().text("encoding-type"), "anndata");
  EXPECT_EQ(file.root().names(), (std::vector<std::string>{"X", "mystery", "obs", "uns", "var"}));
  EXPECT_EQ(file.root().child("mystery").text("encoding-type"), "nobody-knows");
  EXPECT_EQ(file.root().child("mystery/answer").read_all<int64_t>()[0], 42);
  EXPECT_THAT(file.root().child("uns/title").read_strings(), ElementsAre("mine"));
  EXPECT_EQ(dense(file, "X"), dense(in, "X"));
  EXPECT_EQ(file.obs().read("label").text(1), "b");
}

TEST(H5adWriter, LeavesTheInputAloneAndItsNameToTheInput) {
  TemporaryFolder folder;
  const std::string in = small_file(folder / "in.h5ad"), before = bytes_of(in);
  expect_config_error("E-IN-PLACE", [&] { H5adWriter(in, in, Overwrite::replace); });
  std::filesystem::create_symlink(in, folder / "link.h5ad");
  expect_config_error("E-IN-PLACE",
                      [&] { H5adWriter(in, folder / "link.h5ad", Overwrite::replace); });
  write_file(folder / "there.h5ad", "mine", Overwrite::refuse);
  expect_config_error("E-EXISTS",
                      [&] { H5adWriter(in, folder / "there.h5ad", Overwrite::refuse); });
  EXPECT_TRUE(bytes_of(in) == before);
  EXPECT_TRUE(bytes_of(folder / "there.h5ad") == "mine");
}

TEST(H5adWriter, WritesInPlaceWhenAsked) {
  TemporaryFolder folder;
  const std::string in = small_file(folder / "in.h5ad"), before = bytes_of(in);
  {
    H5adWriter out(in, in, Overwrite::refuse, {.in_place = true});
    out.add_real("conf", std::vector<float>(3));
  }
  EXPECT_TRUE(bytes_of(in) == before);  // no commit
  H5adWriter out(in, in, Overwrite::refuse, {.in_place = true});
  out.add_real("conf", std::vector<float>(3));
  EXPECT_TRUE(bytes_of(in) == before);
  out.commit();
  EXPECT_TRUE(H5ad::open(in).obs().has("conf"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / ""), {}), 1);
}

TEST(H5adWriter, ReplacesASlotOnlyWhenAsked) {
  TemporaryFolder folder;
  const std::string in = small_file(folder / "in.h5ad");
  {
    H5adWriter out(in, folder / "out.h5ad", Overwrite::refuse);
    expect_config_error("E-SLOT-EXISTS", [&] { out.add_real("age", std::vector<float>(3)); });
    expect_config_error("E-SLOT-EXISTS", [&] { out.add_uns("title", "new"); });
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "out.h5ad"));
  H5adWriter out(in, folder / "out.h5ad", Overwrite::refuse, {.overwrite_slots = true});
  out.add_categorical("label", std::vector<int32_t>{0, 0, 0}, {"c"});
  out.add_uns("title", "new");
  out.commit();
  const H5ad file = H5ad::open(folder / "out.h5ad");
  EXPECT_THAT(file.obs().columns(), ElementsAre("label", "age"));  // in its old place
  EXPECT_EQ(file.obs().read("label").text(2), "c");
  EXPECT_THAT(file.root().child("uns/title").read_strings(), ElementsAre("new"));
}

TEST(H5adWriter, RefusesNamesThatCannotBe) {
  TemporaryFolder folder;
  const std::string in = small_file(folder / "in.h5ad");
  H5adWriter out(in, folder / "out.h5ad", Overwrite::refuse, {.overwrite_slots = true});
  for (const char* name : {"_index", "__categories", "", "a/b", ".", "..", "\xFF"})
    expect_config_error("E-SLOT-NAME", [&] { out.add_real(name, std::vector<float>(3)); });
  expect_config_error("E-SLOT-NAME", [&] { out.add_uns("a", json{{"b/c", 1}}); });
}

TEST(H5adWriter, RefusesValuesThatDoNotFit) {
  TemporaryFolder folder;
  H5adWriter out(small_file(folder / "in.h5ad"), folder / "out.h5ad", Overwrite::refuse);
  EXPECT_THROW(out.add_real("a", std::vector<float>(2)), ShapeError);
  EXPECT_THROW(out.add_obsm("a", 2, std::vector<float>(5)), ShapeError);
  EXPECT_THROW(out.add_categorical("a", std::vector<int32_t>{0, 1, 2}, {"x", "y"}), ShapeError);
  EXPECT_THROW(out.add_categorical("a", std::vector<int32_t>{0, 1, 1}, {"x", "x"}), ShapeError);
  EXPECT_THROW(out.add_obsm_frame("a", {"x", "x"}, std::vector<float>(6)), ShapeError);
  EXPECT_THROW(out.add_uns("a", json{{"b", {1, "two"}}}), TypeError);
  EXPECT_THROW(out.append_obsm(std::vector<float>(2)), ShapeError);
  out.start_obsm("half", 2);
  EXPECT_THROW(out.append_obsm(std::vector<float>(3)), ShapeError);
  EXPECT_THROW(out.append_obsm(std::vector<float>(8)), ShapeError);
  out.append_obsm(std::vector<float>(4));
  EXPECT_THROW(out.add_real("a", std::vector<float>(3)), ShapeError);
  EXPECT_THROW(out.commit(), ShapeError);
}

TEST(H5adWriter, RefusesLinksIntoOtherFiles) {
  TemporaryFolder folder;
  const std::string in = write_h5ad(folder / "in.h5ad", 3, 2, [](hdf5::OutNode& root) {
    H5Lcreate_external("/etc/hostname", "/", root.id(), "away", H5P_DEFAULT, H5P_DEFAULT);
  });
  expect_data_error("E-HDF5-LINK", "link into another file",
                    [&] { H5adWriter(in, folder / "out.h5ad", Overwrite::refuse); });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / ""), {}), 1);
}

// Every column of a real file of every age comes through, old categoricals among them.
TEST(H5adWriter, CopiesRealFiles) {
  for (const char* name :
       {"pbmc68k_reduced", "kang_ifnb_valid_current", "h5ad_variants/krumsiek11_v07",
        "h5ad_variants/anndataR_example_nullable_gzip", "h5ad_variants/pbmc-small-x-csc",
        "h5ad_variants/x-none"}) {
    const std::string shared = cat("data/", name, ".h5ad");
    SCGRAFT_NEEDS_SHARED(shared);
    TemporaryFolder folder;
    const H5ad in = H5ad::open(shared_path(shared));
    H5adWriter out(in.path(), folder / "out.h5ad", Overwrite::refuse);
    out.add_categorical("scgraft", std::vector<int32_t>(static_cast<size_t>(in.n_obs())), {"x"});
    out.commit();
    const H5ad file = H5ad::open(folder / "out.h5ad");
    EXPECT_EQ(file.obs().columns().size(), in.obs().columns().size() + 1);
    for (const auto& [a, b] : {std::pair{&in.obs(), &file.obs()}, {&in.var(), &file.var()}}) {
      EXPECT_EQ(a->index(), b->index());
      for (const std::string& column : a->columns()) {
        const Column x = a->read(column), y = b->read(column);
        for (int64_t i = 0; i < x.size(); ++i) ASSERT_EQ(x.text(i), y.text(i)) << column;
      }
    }
    for (const MatrixSlot& slot : in.slots()) {
      EXPECT_EQ(file.slot(slot.path).format, slot.format);
      if (slot.format != MatrixFormat::none) {
        EXPECT_TRUE(dense(file, slot.path) == dense(in, slot.path)) << name << " " << slot.path;
      }
    }
    EXPECT_EQ(file.uns_keys(), in.uns_keys());
  }
}

}  // namespace
}  // namespace scgraft
