// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file_error.h"
#include "runtime/dtype.h"

namespace scgraft {

// A Python pickle read as data. Nothing is imported, called or constructed: the opcodes of plain
// containers, strings and numbers build nodes, and the few names in the allow-list stand for the
// nodes described at PickleKind. Every other name makes the file be refused
// (E-PICKLE-GLOBAL), whether its object would be used or not.
enum class PickleKind : uint8_t {
  none,
  boolean,  // integer 0 or 1
  integer,
  real,
  text,
  bytes,
  tuple,
  list,
  dict,     // items: key, value, key, value, ...
  storage,  // a PyTorch storage: text is its key, integer its element count
  tensor,   // _rebuild_tensor_v2: items are storage, offset, size tuple, stride tuple
  global,   // an allowed name that has not been applied to anything
  opaque,   // an object of a harmless library class; its content is not interpreted
};

using PickleId = int32_t;

struct PickleNode {
  PickleKind kind = PickleKind::none;
  uint8_t detail = 0;          // for global: its row in the allow-list
  std::optional<DType> dtype;  // of a storage
  int64_t integer = 0;
  double real = 0;
  std::string_view text;  // of text, bytes, storage; the full name of a global or an opaque node
  std::vector<PickleId> items;
};

// All nodes of one pickle; children are named by number, so shared and cyclic objects are harmless.
class Pickle {
 public:
  // Interprets one pickle (protocol 2 to 5) that starts at bytes[0]; strings are views of `bytes`.
  //   file  name for messages
  // Throws DataError or ModelError (by `kind`):
  //   E-PICKLE-GLOBAL  a name outside the allow-list
  //   E-PICKLE         a damaged stream, or an opcode that weights do not need
  //   E-TRUNCATED      the stream ends early
  //   E-LIMIT          more objects than limits::kPickleObjects
  static Pickle parse(std::span<const std::byte> bytes, FileKind kind, const std::string& file);

  PickleId root() const { return root_; }
  // All nodes are numbered from 0.
  PickleId count() const { return static_cast<PickleId>(nodes_.size()); }
  const PickleNode& operator[](PickleId id) const { return nodes_[static_cast<size_t>(id)]; }
  // Value of a dict under a text key, null when there is none. The last one wins, as in Python.
  const PickleNode* find(const PickleNode& dict, std::string_view key) const;
  // Bytes that the pickle took.
  size_t size() const { return size_; }

 private:
  friend class PickleMachine;
  std::deque<PickleNode> nodes_;
  std::deque<std::string> names_;  // of globals, which are two strings in the stream
  PickleId root_ = 0;
  size_t size_ = 0;
};

}  // namespace scgraft
