// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace scgraft {

// SHA-256 of bytes that arrive in pieces.
//
//   Sha256 digest;
//   digest.update(header);
//   digest.update(body);
//   std::string hex = digest.finish();
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text))); }
  // 64 hexadecimal digits, lower case. Call once.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256(std::span<const std::byte> bytes);
inline std::string sha256(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }
// Of a file's content. Throws DataError when it is missing, StorageError when it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace scgraft
