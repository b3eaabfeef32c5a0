// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace scgraft {

// Genes and special tokens of a model with their rows in the embedding table: ids 0..size()-1,
// each once. Lookup is exact and case-sensitive. Move-only.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  // Reads vocab.json, {"token": id, ...} in any order of ids. Throws ModelError (E-VOCAB,
  // E-JSON...) when a token occurs twice, an id occurs twice or the ids are not 0..n-1.
  static Vocabulary open(const std::string& path);
  static Vocabulary parse(std::span<const std::byte> bytes, const std::string& file);
  // The same from tokens and ids that were read from another kind of file.
  static Vocabulary from_ids(std::span<const std::pair<std::string, int64_t>> ids,
                             const std::string& file);

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> find(std::string_view token) const;
  bool contains(std::string_view token) const { return find(token).has_value(); }
  // The id of a token that the model cannot do without; throws ModelError (E-VOCAB) naming it.
  int32_t id(std::string_view token) const;
  const std::string& token(int64_t id) const { return *tokens_.at(static_cast<size_t>(id)); }

  // Gives `token` the next id unless it has one; returns its id.
  int32_t append(std::string_view token);
  // Appends <pad>, <cls> and <eoc>, in this order, where they are absent.
  void append_specials();

  // The text of vocab.json, in order of ids.
  std::string json_text() const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  std::vector<const std::string*> tokens_;  // keys of ids_, which do not move
};

}  // namespace scgraft
