// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "io/file_error.h"
#include "runtime/cat.h"

namespace scgraft {

// Reads little-endian numbers and pieces from bytes that are not trusted: nothing beyond the end
// is ever touched.
//   file  name for messages
//   what  what the bytes are, e.g. "the zip directory"
// Every function throws DataError or ModelError (by `kind`, E-TRUNCATED) at the end of the bytes.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> bytes, FileKind kind, const std::string& file,
             const char* what)
      : bytes_(bytes), kind_(kind), file_(file), what_(what) {}

  size_t position() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }

  std::span<const std::byte> take(uint64_t count) {
    if (count > left())
      throw_file_error(
          kind_, file_,
          cat(what_, " ends early: ", count, " bytes wanted at byte ", at_, " of ", bytes_.size()),
          "E-TRUNCATED", "the file may be damaged or cut; fetch it again");
    const auto part = bytes_.subspan(at_, static_cast<size_t>(count));
    at_ += static_cast<size_t>(count);
    return part;
  }
  std::string_view text(uint64_t count) {
    const auto part = take(count);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  template <class T>
  requires std::is_arithmetic_v<T> T number() {
    static_assert(std::endian::native == std::endian::little);
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  FileKind kind_;
  const std::string& file_;
  const char* what_;
  size_t at_ = 0;
};

}  // namespace scgraft
