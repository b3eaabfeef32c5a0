// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5_lzf.h"

#include <gmock/gmock.h>
#include <hdf5.h>

#include <numeric>

#include "io/hdf5.h"
#include "tests/io/h5ad_fixture.h"

namespace scgraft {
namespace {

using hdf5::Handle;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Bytes = std::vector<uint8_t>;

// What h5py 3.7 stores of kText: runs as they are, and repeats that are short, long and over
// themselves.
const std::string kText =
    "scgraft reads chunks; scgraft reads" + std::string(300, 'z') + "chunks of lzf";
const Bytes kPacked = {0x16, 0x73, 0x63, 0x67, 0x72, 0x61, 0x66, 0x74, 0x20, 0x72, 0x65, 0x61,
                       0x64, 0x73, 0x20, 0x63, 0x68, 0x75, 0x6e, 0x6b, 0x73, 0x3b, 0x20, 0x73,
                       0xe0, 0x03, 0x15, 0x00, 0x7a, 0xe0, 0xff, 0x00, 0xe0, 0x1a, 0x00, 0x81,
                       0x40, 0x06, 0x20, 0x6f, 0x66, 0x20, 0x6c, 0x7a, 0x66};

// What h5py 3.7 stores of the int32 0, 3, ..., 189 in one chunk with shuffle and lzf.
const Bytes kShuffled = {
    0x1f, 0x00, 0x03, 0x06, 0x09, 0x0c, 0x0f, 0x12, 0x15, 0x18, 0x1b, 0x1e, 0x21, 0x24, 0x27,
    0x2a, 0x2d, 0x30, 0x33, 0x36, 0x39, 0x3c, 0x3f, 0x42, 0x45, 0x48, 0x4b, 0x4e, 0x51, 0x54,
    0x57, 0x5a, 0x5d, 0x1f, 0x60, 0x63, 0x66, 0x69, 0x6c, 0x6f, 0x72, 0x75, 0x78, 0x7b, 0x7e,
    0x81, 0x84, 0x87, 0x8a, 0x8d, 0x90, 0x93, 0x96, 0x99, 0x9c, 0x9f, 0xa2, 0xa5, 0xa8, 0xab,
    0xae, 0xb1, 0xb4, 0xb7, 0xba, 0xbd, 0x00, 0x00, 0xe0, 0xb4, 0x00, 0x01, 0x00, 0x00};

// The fault that is named, or the text.
std::string unpacked(const Bytes& packed, size_t size) {
  // Exactly as long as it may be, so that a sanitizer sees a step over the end.
  Bytes out(size);
  const char* wrong = hdf5::unpack_lzf(packed, out);
  return wrong != nullptr ? wrong : std::string(out.begin(), out.end());
}

TEST(Lzf, UnpacksWhatH5pyPacked) { EXPECT_EQ(unpacked(kPacked, kText.size()), kText); }

TEST(Lzf, UnpacksByHand) {
  EXPECT_EQ(unpacked({}, 0), "");
  EXPECT_EQ(unpacked({0, 'a'}, 1), "a");
  EXPECT_EQ(unpacked({2, 'a', 'b', 'c', 0x20, 2}, 6), "abcabc");            // length 3, 3 back
  EXPECT_EQ(unpacked({1, 'a', 'b', 0xe0, 0, 1}, 11), "abababababa");        // length 9, 2 back
  EXPECT_EQ(unpacked({0, 'a', 0xe0, 255, 0}, 265), std::string(265, 'a'));  // the longest
  Bytes far(8192 / 32 * 33, 'x');  // a repeat of the farthest byte, 8192 back
  for (size_t i = 0; i < far.size(); i += 33) far[i] = 31;
  far[1] = 'a', far[2] = 'b', far[3] = 'c';
  far.insert(far.end(), {0x3f, 0xff});
  EXPECT_EQ(unpacked(far, 8195).substr(8190), "xxabc");
}

TEST(Lzf, NamesWhatIsDamaged) {
  EXPECT_THAT(unpacked({0}, 1), HasSubstr("ends inside a run"));
  EXPECT_THAT(unpacked({3, 'a'}, 4), HasSubstr("ends inside a run"));
  EXPECT_THAT(unpacked({0, 'a', 0x20}, 4), HasSubstr("ends inside a run"));
  EXPECT_THAT(unpacked({0, 'a', 0xe0, 1}, 11), HasSubstr("ends inside a run"));
  EXPECT_THAT(unpacked({0x20, 0}, 3), HasSubstr("before its begin"));
  EXPECT_THAT(unpacked({0, 'a', 0x20, 1}, 4), HasSubstr("before its begin"));
  EXPECT_THAT(unpacked({1, 'a', 'b'}, 1), HasSubstr("more than it should"));
  EXPECT_THAT(unpacked({0, 'a', 0x20, 0}, 3), HasSubstr("more than it should"));
  EXPECT_THAT(unpacked({0, 'a'}, 2), HasSubstr("less than it should"));
  EXPECT_THAT(unpacked({}, 1), HasSubstr("less than it should"));
}

// A stream cut anywhere is an error.
TEST(Lzf, NoCutIsRead) {
  for (size_t size = 0; size < kPacked.size(); ++size) {
    const Bytes cut(kPacked.begin(), kPacked.begin() + static_cast<int64_t>(size));
    EXPECT_THAT(unpacked(cut, kText.size()), HasSubstr("an lzf chunk")) << size;
  }
}

// Any byte may have any value: what comes is an error or a text of the right length, of which no
// byte lies outside the two buffers (the sanitizers look).
TEST(Lzf, NoDamageDoesHarm) {
  size_t refused = 0;
  for (size_t at = 0; at < kPacked.size(); ++at)
    for (int value = 0; value < 256; ++value) {
      Bytes damaged = kPacked;
      damaged[at] = static_cast<uint8_t>(value);
      const std::string got = unpacked(damaged, kText.size());
      if (got.size() == kText.size()) continue;
      EXPECT_THAT(got, HasSubstr("an lzf chunk"));
      ++refused;
    }
  EXPECT_GT(refused, 22 * kPacked.size());  // every other control byte, at least
}

size_t as_it_is(unsigned, size_t, const unsigned*, size_t bytes, size_t*, void**) { return bytes; }

// A file of one dataset "list" of int32 in one chunk, which holds the bytes `chunk`.
//   claimed  the chunk's bytes that the filter is told of, 0: nothing
std::string write_list(const std::string& path, hsize_t values, unsigned claimed,
                       const Bytes& chunk) {
  hdf5::OutFile file(path, path);
  {
    // A filter that cannot pack is not taken for a new dataset.
    const H5Z_class2_t packer{H5Z_CLASS_T_VERS, hdf5::kLzfFilter, 1,       1,
                              "test",           nullptr,          nullptr, as_it_is};
    EXPECT_GE(H5Zregister(&packer), 0);
    const Handle space(H5Screate_simple(1, &values, nullptr));
    const Handle create(H5Pcreate(H5P_DATASET_CREATE));
    H5Pset_chunk(create.get(), 1, &values);
    H5Pset_shuffle(create.get());
    const unsigned parameters[] = {4, 261, claimed};
    H5Pset_filter(create.get(), hdf5::kLzfFilter, H5Z_FLAG_OPTIONAL, claimed > 0 ? 3 : 2,
                  parameters);
    const Handle made(H5Dcreate2(file.id(), "list", H5T_STD_I32LE, space.get(), H5P_DEFAULT,
                                 create.get(), H5P_DEFAULT));
    EXPECT_TRUE(made.valid());
    const hsize_t first = 0;
    EXPECT_GE(H5Dwrite_chunk(made.get(), H5P_DEFAULT, 0, &first, chunk.size(), chunk.data()), 0);
  }
  file.close();
  hdf5::register_lzf();
  return path;
}

std::vector<int32_t> read_list(const std::string& path) {
  return hdf5::Node::open(path).child("list").read_all<int32_t>();
}

TEST(LzfFilter, ReadsAChunkOfH5py) {
  TemporaryFolder folder;
  std::vector<int32_t> want(64);
  for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<int32_t>(3 * i);
  EXPECT_EQ(read_list(write_list(folder / "a.h5", 64, 256, kShuffled)), want);
}

TEST(LzfFilter, ADamagedChunkIsAnError) {
  TemporaryFolder folder;
  const auto read = [&](const Bytes& chunk) {
    return [&] { read_list(write_list(folder / "a.h5", 64, 256, chunk)); };
  };
  for (size_t size = 3; size < kShuffled.size(); size += 7)
    expect_data_error("E-HDF5-READ", "an lzf chunk",
                      read({kShuffled.begin(), kShuffled.begin() + static_cast<int64_t>(size)}));
  Bytes longer = kShuffled;
  longer.insert(longer.end(), {0, 'x'});
  expect_data_error("E-HDF5-READ", "/list: an lzf chunk unpacks to more than it should",
                    read(longer));
  // Refused before memory is taken.
  expect_data_error("E-HDF5-READ", "too short for what it should unpack to",
                    [&] { read_list(write_list(folder / "a.h5", 1 << 20, 1 << 22, kShuffled)); });
}

TEST(LzfFilter, TheClaimedSizeIsTheChunks) {
  TemporaryFolder folder;
  for (const unsigned claimed : {0u, 64u, 252u, 260u, 1u << 31})
    expect_data_error("E-HDF5-READ", cat("in pieces of 256 bytes, its filter lzf says ", claimed),
                      [&] { read_list(write_list(folder / "a.h5", 64, claimed, kShuffled)); });
}

}  // namespace
}  // namespace scgraft
