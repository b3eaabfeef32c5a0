// SPDX-License-Identifier: Apache-2.0
#include "io/vocabulary.h"

#include "io/json.h"
#include "io/mapped_file.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

[[noreturn]] void refuse(const std::string& file, const std::string& message,
                         const std::string& token = {}) {
  throw_file_error(FileKind::model, file, message, "E-VOCAB",
                   "use the vocabulary that came with the model's weights", escaped(token));
}

[[noreturn]] void refuse_id(const std::string& file, const std::string& token,
                            const std::string& id, size_t count) {
  refuse(file,
         cat("token \"", escaped(token), "\" has the id ", id, "; ", count,
             " tokens need the ids 0 to ", count - 1, ", each once"),
         token);
}

}  // namespace

Vocabulary Vocabulary::open(const std::string& path) {
  return parse(MappedFile::open(path, FileKind::model)->bytes(), path);
}

Vocabulary Vocabulary::parse(std::span<const std::byte> bytes, const std::string& file) {
  const nlohmann::json json = parse_json(bytes, file, FileKind::model);
  if (!json.is_object()) refuse(file, "a vocabulary is an object {\"token\": id, ...}");
  std::vector<std::pair<std::string, int64_t>> ids;
  ids.reserve(json.size());
  for (const auto& [token, value] : json.items()) {
    if (!value.is_number_integer()) refuse_id(file, token, escaped(value.dump()), json.size());
    ids.emplace_back(token, value.get<int64_t>());
  }
  return from_ids(ids, file);
}

Vocabulary Vocabulary::from_ids(std::span<const std::pair<std::string, int64_t>> ids,
                                const std::string& file) {
  Vocabulary vocabulary;
  vocabulary.ids_.reserve(ids.size() + 3);
  vocabulary.tokens_.resize(ids.size(), nullptr);
  for (const auto& [token, value] : ids) {
    if (value < 0 || value >= static_cast<int64_t>(ids.size()))
      refuse_id(file, token, cat(value), ids.size());
    const std::string*& slot = vocabulary.tokens_[static_cast<size_t>(value)];
    if (slot != nullptr)
      refuse(
          file,
          cat("tokens \"", escaped(*slot), "\" and \"", escaped(token), "\" share the id ", value),
          token);
    const auto [entry, added] = vocabulary.ids_.emplace(token, static_cast<int32_t>(value));
    if (!added) refuse(file, cat("token \"", escaped(token), "\" has two ids"), token);
    slot = &entry->first;
  }
  return vocabulary;
}

std::optional<int32_t> Vocabulary::find(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

int32_t Vocabulary::id(std::string_view token) const {
  const auto found = find(token);
  if (!found)
    throw ModelError(
        cat("the model's vocabulary of ", size(), " tokens has no \"", escaped(token), "\""),
        "E-VOCAB");
  return *found;
}

int32_t Vocabulary::append(std::string_view token) {
  const auto [entry, added] = ids_.try_emplace(std::string(token), static_cast<int32_t>(size()));
  if (added) tokens_.push_back(&entry->first);
  return entry->second;
}

void Vocabulary::append_specials() {
  for (const char* token : {"<pad>", "<cls>", "<eoc>"}) append(token);
}

std::string Vocabulary::json_text() const {
  std::string text = "{";
  for (int64_t i = 0; i < size(); ++i)
    text += cat(i ? ",\n  " : "\n  ", nlohmann::json(token(i)).dump(), ": ", i);
  return text + "\n}\n";
}

}  // namespace scgraft
