// SPDX-License-Identifier: Apache-2.0
#include "io/zip_directory.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "io/byte_reader.h"
#include "io/limits.h"
#include "io/text.h"

namespace scgraft {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kDirectoryEntry = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50;
constexpr uint32_t kEnd64 = 0x06064b50;
constexpr uint32_t kEnd64Locator = 0x07064b50;
constexpr size_t kEndSize = 22;
constexpr size_t kEnd64LocatorSize = 20;
constexpr size_t kLocalHeaderSize = 30;
constexpr uint16_t kEncrypted = 1;
constexpr uint16_t kStored = 0;
constexpr uint16_t kDeflated = 8;
constexpr uint16_t kZip64Field = 1;
constexpr uint32_t kInZip64 = 0xffffffffu;

// Where the directory is and how many entries it has.
struct End {
  uint64_t count = 0;
  uint64_t offset = 0;
  uint64_t size = 0;
};

class Parser {
 public:
  Parser(std::span<const std::byte> archive, FileKind kind, const std::string& file)
      : archive_(archive), kind_(kind), file_(file) {}

  [[noreturn]] void fail(const std::string& message, const std::string& object = {}) const {
    throw_file_error(kind_, file_, message, "E-ZIP",
                     "the file may be damaged or cut; fetch it again", escaped(object));
  }

  End end() const {
    const size_t at = find_end();
    ByteReader reader = reader_at(at, kEndSize);
    reader.number<uint32_t>();
    const auto disk = reader.number<uint16_t>();
    const auto first_disk = reader.number<uint16_t>();
    const auto here = reader.number<uint16_t>();
    End end;
    end.count = reader.number<uint16_t>();
    end.size = reader.number<uint32_t>();
    end.offset = reader.number<uint32_t>();
    if (end.count == 0xffff || end.size == kInZip64 || end.offset == kInZip64) {
      if (const auto large = end64(at)) return *large;
    }
    if (disk != 0 || first_disk != 0 || here != end.count)
      fail("is one part of a split zip archive");
    return end;
  }

  ZipEntry entry(ByteReader& reader) const {
    if (reader.number<uint32_t>() != kDirectoryEntry) fail("its zip directory is damaged");
    reader.take(4);  // versions
    const auto flags = reader.number<uint16_t>();
    ZipEntry entry;
    entry.method = reader.number<uint16_t>();
    reader.take(4);  // time and date
    entry.crc = reader.number<uint32_t>();
    uint64_t packed = reader.number<uint32_t>();
    uint64_t size = reader.number<uint32_t>();
    const auto name_size = reader.number<uint16_t>();
    const auto extra_size = reader.number<uint16_t>();
    const auto comment_size = reader.number<uint16_t>();
    reader.take(8);  // disk, attributes
    uint64_t offset = reader.number<uint32_t>();
    entry.name = reader.text(name_size);
    const auto extra = reader.take(extra_size);
    reader.take(comment_size);
    widen(entry.name, extra, size, packed, offset);
    if (flags & kEncrypted) fail(cat("entry \"", escaped(entry.name), "\" is encrypted"));
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail(cat("entry \"", escaped(entry.name), "\" claims ", size, " bytes"), entry.name);
    entry.size = static_cast<int64_t>(size);
    if (entry.method == kStored && packed != size)
      fail(cat("entry \"", escaped(entry.name), "\" is stored with two sizes, ", packed, " and ",
               size),
           entry.name);
    entry.packed = local(entry.name, offset, packed);
    return entry;
  }

  ByteReader reader_at(uint64_t offset, uint64_t size) const {
    if (offset > archive_.size() || size > archive_.size() - offset)
      fail(cat("its zip directory points beyond the end of the file (byte ", offset, " of ",
               archive_.size(), ")"));
    return ByteReader(archive_.subspan(offset, size), kind_, file_, "the zip directory");
  }

 private:
  uint32_t word(size_t at) const {
    uint32_t value;
    std::memcpy(&value, archive_.data() + at, 4);
    return value;
  }

  // The record at the very end, behind which only its own comment of at most 65,535 bytes stands.
  size_t find_end() const {
    const size_t size = archive_.size();
    if (size >= kEndSize) {
      const size_t first = size - std::min(size, kEndSize + 0xffff);
      for (size_t at = size - kEndSize + 1; at-- > first;) {
        if (word(at) != kEnd) continue;
        uint16_t comment;
        std::memcpy(&comment, archive_.data() + at + 20, 2);
        if (at + kEndSize + comment == size) return at;
      }
    }
    fail("is not a complete zip archive: the directory at its end is missing");
  }

  std::optional<End> end64(size_t end) const {
    if (end < kEnd64LocatorSize || word(end - kEnd64LocatorSize) != kEnd64Locator)
      return std::nullopt;
    ByteReader locator = reader_at(end - kEnd64LocatorSize, kEnd64LocatorSize);
    locator.take(8);
    const auto offset = locator.number<uint64_t>();
    ByteReader reader = reader_at(offset, 56);
    if (reader.number<uint32_t>() != kEnd64) fail("its zip64 directory is damaged");
    reader.take(8 + 4);  // size of this record, versions
    const auto disk = reader.number<uint32_t>();
    const auto first_disk = reader.number<uint32_t>();
    const auto here = reader.number<uint64_t>();
    End large;
    large.count = reader.number<uint64_t>();
    large.size = reader.number<uint64_t>();
    large.offset = reader.number<uint64_t>();
    if (disk != 0 || first_disk != 0 || here != large.count)
      fail("is one part of a split zip archive");
    return large;
  }

  // Takes the sizes that do not fit 32 bits from the zip64 field, in which only those stand.
  void widen(const std::string& name, std::span<const std::byte> extra, uint64_t& size,
             uint64_t& packed, uint64_t& offset) const {
    if (size != kInZip64 && packed != kInZip64 && offset != kInZip64) return;
    ByteReader reader(extra, kind_, file_, "the zip directory");
    while (reader.left() >= 4) {
      const auto id = reader.number<uint16_t>();
      const auto length = reader.number<uint16_t>();
      ByteReader field(reader.take(length), kind_, file_, "the zip directory");
      if (id != kZip64Field) continue;
      for (uint64_t* value : {&size, &packed, &offset})
        if (*value == kInZip64) *value = field.number<uint64_t>();
      return;
    }
    fail(cat("entry \"", escaped(name), "\" lacks its zip64 sizes"), name);
  }

  // The data of an entry, behind a local header that must name the same file.
  std::span<const std::byte> local(const std::string& name, uint64_t offset,
                                   uint64_t packed) const {
    ByteReader reader = reader_at(offset, kLocalHeaderSize);
    if (reader.number<uint32_t>() != kLocalHeader)
      fail(cat("entry \"", escaped(name), "\" has no header where the directory says"), name);
    reader.take(22);
    const auto name_size = reader.number<uint16_t>();
    const auto extra_size = reader.number<uint16_t>();
    ByteReader rest(archive_.subspan(offset + kLocalHeaderSize), kind_, file_, "a zip entry");
    if (rest.text(name_size) != name)
      fail(cat("entry \"", escaped(name), "\" has another name in its header"), name);
    rest.take(extra_size);
    return rest.take(packed);
  }

  std::span<const std::byte> archive_;
  FileKind kind_;
  const std::string& file_;
};

// Inflates `packed` into exactly out.size() bytes; false when it is damaged or has another size.
bool inflate_all(std::span<const std::byte> packed, std::span<std::byte> out) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
  // zlib counts in 32 bits.
  constexpr size_t kStep = size_t{1} << 30;
  size_t in_at = 0, out_at = 0;
  int status = Z_OK;
  std::byte beyond;  // offered when `out` is full, to notice data that goes on
  while (status == Z_OK) {
    const size_t in = std::min(kStep, packed.size() - in_at);
    const size_t room = std::min(kStep, out.size() - out_at);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data())) + in_at;
    stream.avail_in = static_cast<uInt>(in);
    stream.next_out = reinterpret_cast<Bytef*>(room ? out.data() + out_at : &beyond);
    stream.avail_out = static_cast<uInt>(room ? room : 1);
    status = inflate(&stream, Z_NO_FLUSH);
    const size_t produced = (room ? room : 1) - stream.avail_out;
    if (room == 0 && produced > 0) status = Z_DATA_ERROR;
    in_at += in - stream.avail_in;
    out_at += room ? produced : 0;
  }
  inflateEnd(&stream);
  return status == Z_STREAM_END && out_at == out.size();
}

uint32_t checksum(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

}  // namespace

ZipDirectory ZipDirectory::parse(std::span<const std::byte> archive, FileKind kind,
                                 const std::string& file) {
  const Parser parser(archive, kind, file);
  const End end = parser.end();
  if (end.count > static_cast<uint64_t>(limits::kZipEntries))
    throw_file_error(kind, file,
                     cat("claims ", end.count, " zip entries, the limit is ", limits::kZipEntries),
                     "E-LIMIT");
  ZipDirectory out;
  out.kind_ = kind;
  out.file_ = file;
  ByteReader reader = parser.reader_at(end.offset, end.size);
  for (uint64_t i = 0; i < end.count; ++i) {
    ZipEntry entry = parser.entry(reader);
    const std::string name = entry.name;
    if (!out.entries_.emplace(name, std::move(entry)).second)
      parser.fail(cat("has two zip entries \"", escaped(name), "\""), name);
  }
  return out;
}

const ZipEntry* ZipDirectory::find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

ZipContent ZipDirectory::read(const ZipEntry& entry, int64_t limit) const {
  const auto fail = [&](const std::string& message, const char* code) {
    throw_file_error(kind_, file_, cat("zip entry \"", escaped(entry.name), "\" ", message), code,
                     "the file may be damaged or cut; fetch it again", escaped(entry.name));
  };
  if (entry.size > limit)
    fail(cat("claims ", entry.size, " bytes, the limit is ", limit), "E-LIMIT");
  ZipContent content;
  if (entry.method == kStored) {
    content.bytes = entry.packed;
  } else if (entry.method == kDeflated) {
    // No deflate stream grows more than 1032 times.
    if (entry.size / 1032 > static_cast<int64_t>(entry.packed.size()))
      fail(cat("claims ", entry.size, " bytes from ", entry.packed.size()), "E-ZIP");
    auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(entry.size));
    if (!inflate_all(entry.packed, *bytes)) fail("does not unpack to its size", "E-ZIP");
    content.bytes = *bytes;
    content.unpacked = std::move(bytes);
  } else {
    fail(cat("is packed by method ", entry.method, ", only stored and deflated are read"), "E-ZIP");
  }
  if (checksum(content.bytes) != entry.crc) fail("does not match its checksum", "E-ZIP");
  return content;
}

}  // namespace scgraft
