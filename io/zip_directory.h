// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "io/file_error.h"

namespace scgraft {

// One file inside a zip archive.
struct ZipEntry {
  std::string name;
  uint16_t method = 0;  // 0 stored, 8 deflated
  uint32_t crc = 0;
  int64_t size = 0;                   // bytes when unpacked, as the archive claims
  std::span<const std::byte> packed;  // where they lie in the archive
};

// Content of an entry: a view of the archive when it is stored, else unpacked memory.
struct ZipContent {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> unpacked;  // null when bytes lie in the archive
};

// The table of contents of a zip archive whose bytes are in memory. libzip does not tell where an
// entry lies, and stored entries are to be used in place, so the directory is read here.
//
// Claims are checked before they are believed: every entry lies inside the archive, its local
// header agrees with the directory, no name occurs twice, nothing is encrypted or split.
// Throws DataError or ModelError (by `kind`): E-ZIP, E-TRUNCATED, E-LIMIT.
// Source: PKWARE .ZIP File Format Specification 6.3, sections 4.3 and 4.5.3 (zip64).
class ZipDirectory {
 public:
  static ZipDirectory parse(std::span<const std::byte> archive, FileKind kind,
                            const std::string& file);

  const std::map<std::string, ZipEntry, std::less<>>& entries() const { return entries_; }
  const ZipEntry* find(std::string_view name) const;

  // Unpacks an entry, at most `limit` bytes, and compares it with its checksum. Throws as parse().
  ZipContent read(const ZipEntry& entry, int64_t limit) const;

 private:
  FileKind kind_ = FileKind::data;
  std::string file_;
  std::map<std::string, ZipEntry, std::less<>> entries_;
};

}  // namespace scgraft
