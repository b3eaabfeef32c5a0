// SPDX-License-Identifier: Apache-2.0
#include "io/zip_directory.h"

#include <limits>

#include "io/limits.h"
#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr size_t kEndSize = 22;

ZipDirectory parse(const std::string& bytes) {
  return ZipDirectory::parse(bytes_of(bytes), FileKind::model, "t.zip");
}
std::string text_of(const ZipContent& content) {
  return {reinterpret_cast<const char*>(content.bytes.data()), content.bytes.size()};
}
void expect_bad(const std::string& bytes, const std::string& part,
                const std::string& code = "E-ZIP") {
  SCOPED_TRACE(part);
  expect_model_error(code, part, [&] {
    const ZipDirectory zip = parse(bytes);
    for (const auto& [name, entry] : zip.entries()) zip.read(entry, kNoLimit);
  });
}
// `bytes` with `value` at a place.
template <class T>
std::string with(std::string bytes, size_t at, T value) {
  return bytes.replace(at, sizeof(T), le(value));
}
size_t directory_at(const std::string& bytes) { return bytes.find("PK\x01\x02"); }

TEST(ZipDirectory, ReadsStoredAndDeflatedEntries) {
  const std::string large(200'000, 'x');
  const std::string bytes = zip_of(
      {{"a/stored", "hello"}, {"a/deflated", large, true}, {"empty", ""}, {"none", "", true}});
  const ZipDirectory zip = parse(bytes);
  ASSERT_EQ(zip.entries().size(), 4u);
  const ZipContent stored = zip.read(*zip.find("a/stored"), kNoLimit);
  EXPECT_EQ(text_of(stored), "hello");
  EXPECT_EQ(stored.unpacked, nullptr);
  EXPECT_EQ(reinterpret_cast<const char*>(stored.bytes.data()), bytes.data() + bytes.find("hello"));
  const ZipContent deflated = zip.read(*zip.find("a/deflated"), kNoLimit);
  EXPECT_EQ(text_of(deflated), large);
  EXPECT_NE(deflated.unpacked, nullptr);
  EXPECT_EQ(text_of(zip.read(*zip.find("empty"), kNoLimit)), "");
  EXPECT_EQ(text_of(zip.read(*zip.find("none"), kNoLimit)), "");
  EXPECT_EQ(zip.find("a"), nullptr);
}

TEST(ZipDirectory, ReadsAnArchiveBehindAComment) {
  std::string bytes = zip_of({{"a", "1"}});
  bytes = with<uint16_t>(bytes, bytes.size() - 2, 5) + "PK\x05\x06!";  // a comment like an end
  EXPECT_EQ(text_of(parse(bytes).read(*parse(bytes).find("a"), kNoLimit)), "1");
}

TEST(ZipDirectory, EmptyArchive) { EXPECT_TRUE(parse(zip_of({})).entries().empty()); }

// One stored entry whose sizes and place stand in the zip64 fields only.
std::string zip64(uint64_t size, uint64_t offset, uint64_t count, const std::string& extra_id) {
  const std::string content = "hello";
  const auto crc = static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(content.data()), content.size()));
  const std::string local = "PK\x03\x04" + le<uint16_t>(45) + le<uint16_t>(0) + le<uint16_t>(0) +
                            le<uint32_t>(0) + le(crc) + le(UINT32_MAX) + le(UINT32_MAX) +
                            le<uint16_t>(1) + le<uint16_t>(0) + "a" + content;
  const std::string extra = extra_id + le<uint16_t>(24) + le(size) + le(size) + le(offset);
  const std::string entry = "PK\x01\x02" + le<uint16_t>(45) + le<uint16_t>(45) + le<uint16_t>(0) +
                            le<uint16_t>(0) + le<uint32_t>(0) + le(crc) + le(UINT32_MAX) +
                            le(UINT32_MAX) + le<uint16_t>(1) +
                            le<uint16_t>(static_cast<uint16_t>(extra.size())) + le<uint16_t>(0) +
                            std::string(8, '\0') + le(UINT32_MAX) + "a" + extra;
  const std::string end64 = "PK\x06\x06" + le<uint64_t>(44) + le<uint16_t>(45) + le<uint16_t>(45) +
                            le<uint32_t>(0) + le<uint32_t>(0) + le(count) + le(count) +
                            le<uint64_t>(entry.size()) + le<uint64_t>(local.size());
  const std::string locator =
      "PK\x06\x07" + le<uint32_t>(0) + le<uint64_t>(local.size() + entry.size()) + le<uint32_t>(1);
  return local + entry + end64 + locator + "PK\x05\x06" + le<uint32_t>(0) + le<uint16_t>(0xffff) +
         le<uint16_t>(0xffff) + le(UINT32_MAX) + le(UINT32_MAX) + le<uint16_t>(0);
}

TEST(ZipDirectory, LargeArchivesHaveTheirSizesElsewhere) {
  const std::string field = le<uint16_t>(1);
  const std::string bytes = zip64(5, 0, 1, field);
  EXPECT_EQ(text_of(parse(bytes).read(*parse(bytes).find("a"), kNoLimit)), "hello");
  expect_bad(zip64(5, 0, 1, le<uint16_t>(7)), "lacks its zip64 sizes");
  expect_bad(zip64(UINT64_MAX, 0, 1, field), "claims 18446744073709551615 bytes");
  expect_bad(zip64(5, UINT64_MAX, 1, field), "points beyond the end");
  expect_bad(zip64(5000, 0, 1, field), "ends early", "E-TRUNCATED");
  expect_bad(zip64(5, 0, 2, field), "ends early", "E-TRUNCATED");
  expect_bad(zip64(5, 0, 1'000'001, field), "1000001 zip entries", "E-LIMIT");
}

TEST(ZipDirectory, ClaimsAreCheckedBeforeTheyAreBelieved) {
  const std::string good = zip_of({{"a", "hello"}, {"b", "world"}});
  const size_t entry = directory_at(good);
  const size_t end = good.size() - kEndSize;
  const size_t local_b = good.find("PK\x03\x04", 4);

  expect_bad(with<uint16_t>(good, entry + 8, 1), "\"a\" is encrypted");
  expect_bad(with<uint16_t>(good, entry + 10, 12), "packed by method 12");
  expect_bad(with<uint32_t>(good, entry + 16, 1), "does not match its checksum");
  expect_bad(with<uint32_t>(good, entry + 24, 6), "stored with two sizes");
  expect_bad(with<uint32_t>(with<uint32_t>(good, entry + 20, 999), entry + 24, 999), "ends early",
             "E-TRUNCATED");
  expect_bad(with<uint32_t>(good, entry + 42, 3), "no header where the directory says");
  expect_bad(with<uint32_t>(good, entry + 42, 0x7fffffff), "points beyond the end");
  expect_bad(with<uint32_t>(good, entry + 42, static_cast<uint32_t>(local_b)),
             "another name in its header");
  expect_bad(with<uint32_t>(good, entry, 0), "zip directory is damaged");
  expect_bad(with<uint32_t>(good, end + 16, 0x7fffffff), "points beyond the end");
  expect_bad(with<uint32_t>(good, end + 12, 0x7fffffff), "points beyond the end");
  expect_bad(with<uint16_t>(good, end + 4, 1), "split zip archive");
  expect_bad(with<uint16_t>(good, end + 8, 1), "split zip archive");
  expect_bad(zip_of({{"a", "1"}, {"a", "2"}}), "two zip entries \"a\"");
  expect_bad("", "not a complete zip archive");
  expect_bad(std::string(1000, '\0'), "not a complete zip archive");
}

TEST(ZipDirectory, BombsAreNotUnpacked) {
  const std::string megabyte(1 << 20, '\0');
  const std::string bytes = zip_of({{"bomb", megabyte, true}});
  const size_t entry = directory_at(bytes);
  // More than was allowed.
  const ZipDirectory zip = parse(bytes);
  expect_model_error("E-LIMIT", "claims 1048576 bytes, the limit is 1000",
                     [&] { zip.read(*zip.find("bomb"), 1000); });
  // More, and less, than the claim.
  expect_bad(with<uint32_t>(bytes, entry + 24, (1 << 20) - 1), "does not unpack to its size");
  expect_bad(with<uint32_t>(bytes, entry + 24, (1 << 20) + 1), "does not unpack to its size");
  // More than deflate can make of so few bytes: not even allocated.
  expect_bad(with<uint32_t>(bytes, entry + 24, 0xfffffffe), "claims 4294967294 bytes from");
}

TEST(ZipDirectory, DamageInPackedDataIsFound) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += std::to_string(i * i % 97);
  const std::string good = zip_of({{"a", text, true}});
  const ZipDirectory whole = parse(good);
  const size_t first = static_cast<size_t>(
      reinterpret_cast<const char*>(whole.find("a")->packed.data()) - good.data());
  const size_t size = whole.find("a")->packed.size();
  size_t refused = 0;
  for (size_t i = 0; i < size; ++i) {
    std::string bad = good;
    bad[first + i] = static_cast<char>(bad[first + i] ^ 0x10);
    const ZipDirectory zip = parse(bad);
    try {  // the bits behind the last block mean nothing
      EXPECT_EQ(text_of(zip.read(*zip.find("a"), kNoLimit)), text) << i;
    } catch (const ModelError& error) {
      EXPECT_EQ(error.code(), "E-ZIP");
      ++refused;
    }
  }
  EXPECT_GE(refused, size - 1);
}

TEST(ZipDirectory, EveryCutIsNoticed) {
  const std::string good = zip_of({{"a", "hello"}, {"b", "world", true}});
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_THROW(parse(good.substr(0, length)), ModelError) << length;
}

TEST(ZipDirectory, ErrorsAreOfTheKindOfTheFileAndSafeToPrint) {
  const std::string bytes = zip_of({{"\x1b[2J", "1"}, {"\x1b[2J", "1"}});
  expect_file_error(ExitCode::data, "E-ZIP", "\\x1b[2J",
                    [&] { ZipDirectory::parse(bytes_of(bytes), FileKind::data, "t.zip"); });
}

}  // namespace
}  // namespace scgraft
