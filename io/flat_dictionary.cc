// SPDX-License-Identifier: Apache-2.0
#include "io/flat_dictionary.h"

#include <string_view>
#include <unordered_set>

#include "io/json.h"
#include "io/mapped_file.h"
#include "io/pickle.h"
#include "io/text.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

constexpr std::byte kPickleProtocol{0x80};  // the first opcode since protocol 2

class Reader {
 public:
  Reader(FileKind kind, const std::string& file) : kind_(kind), file_(file) {}

  std::vector<FlatEntry> pickle(std::span<const std::byte> bytes) const {
    const Pickle pickle = Pickle::parse(bytes, kind_, file_);
    const PickleNode& root = pickle[pickle.root()];
    if (root.kind != PickleKind::dict) fail("holds no dictionary");
    std::vector<FlatEntry> entries;
    entries.reserve(root.items.size() / 2);
    std::unordered_set<std::string_view> keys;
    for (size_t i = 0; i < root.items.size(); i += 2) {
      const PickleNode& key = pickle[root.items[i]];
      const PickleNode& value = pickle[root.items[i + 1]];
      if (key.kind != PickleKind::text) fail(cat("has a key that is no text (entry ", i / 2, ")"));
      if (!keys.insert(key.text).second) fail_at(key.text, "twice");
      switch (value.kind) {
        case PickleKind::integer:
          entries.push_back({std::string(key.text), value.integer});
          break;
        case PickleKind::real:
          entries.push_back({std::string(key.text), value.real});
          break;
        case PickleKind::text:
          entries.push_back({std::string(key.text), std::string(value.text)});
          break;
        default:
          fail_at(key.text, "with a value that is neither a number nor text");
      }
    }
    return entries;
  }

  std::vector<FlatEntry> json(std::span<const std::byte> bytes) const {
    const nlohmann::json object = parse_json(bytes, file_, kind_);
    if (!object.is_object()) fail("holds no dictionary");
    std::vector<FlatEntry> entries;
    entries.reserve(object.size());
    for (const auto& [key, value] : object.items()) {
      if (value.is_number_integer())
        entries.push_back({key, value.get<int64_t>()});
      else if (value.is_number())
        entries.push_back({key, value.get<double>()});
      else if (value.is_string())
        entries.push_back({key, value.get<std::string>()});
      else
        fail_at(key, "with a value that is neither a number nor text");
    }
    return entries;
  }

 private:
  [[noreturn]] void fail(const std::string& message, const std::string& key = {}) const {
    throw_file_error(kind_, file_, message, "E-DICTIONARY",
                     "wanted one dictionary from text to numbers or text, as JSON or as a pickle",
                     key);
  }
  [[noreturn]] void fail_at(std::string_view key, const char* what) const {
    fail(cat("has the key \"", escaped(key), "\" ", what), escaped(key));
  }

  FileKind kind_;
  const std::string& file_;
};

}  // namespace

std::vector<FlatEntry> parse_flat_dictionary(std::span<const std::byte> bytes, FileKind kind,
                                             const std::string& file) {
  const Reader reader(kind, file);
  const bool pickle = !bytes.empty() && bytes.front() == kPickleProtocol;
  return pickle ? reader.pickle(bytes) : reader.json(bytes);
}

std::vector<FlatEntry> read_flat_dictionary(const std::string& path, FileKind kind) {
  return parse_flat_dictionary(MappedFile::open(path, kind)->bytes(), kind, path);
}

}  // namespace scgraft
