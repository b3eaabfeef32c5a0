// SPDX-License-Identifier: Apache-2.0
#include "io/shard_index.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "io/json.h"
#include "io/limits.h"
#include "io/text.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& file, const std::string& message,
                       const std::string& object = {}) {
  throw_file_error(FileKind::model, file, message, "E-SHARDS", "copy the whole folder again",
                   escaped(object));
}

// A path would let an index read files that are no part of the model; of a text with a zero byte
// the system reads the beginning.
bool is_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), [](char c) {
           return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20;
         });
}

}  // namespace

bool is_shard_index(std::string_view path) { return path.ends_with(".index.json"); }

ShardIndex ShardIndex::read(const std::string& path) {
  const nlohmann::json object = read_json(path, FileKind::model);
  if (!object.is_object() || !object.contains("weight_map") || !object["weight_map"].is_object())
    fail(path, "is no index of weights: an object weight_map of tensors and their files is needed");
  const nlohmann::json& map = object["weight_map"];
  if (map.empty()) fail(path, "weight_map names no tensor");
  if (static_cast<int64_t>(map.size()) > limits::kTensorsPerFile)
    throw_file_error(FileKind::model, path,
                     cat("names ", map.size(), " tensors, the limit is ", limits::kTensorsPerFile),
                     "E-LIMIT");

  ShardIndex out;
  if (object.contains("metadata")) out.metadata = object["metadata"];
  std::map<std::string, size_t> names;  // of shards
  for (const auto& [tensor, shard] : map.items()) {
    if (!shard.is_string())
      fail(path,
           cat("weight_map has ", escaped(shard.dump()), " for \"", escaped(tensor),
               "\", the name of a file is needed"),
           tensor);
    const std::string& name = shard.get_ref<const std::string&>();
    if (!is_file_name(name))
      fail(path,
           cat("weight_map has \"", escaped(name), "\" for \"", escaped(tensor),
               "\", the plain name of a file in the same folder is needed"),
           tensor);
    names.emplace(name, 0);
  }
  std::set<std::string> missing;
  for (auto& [name, at] : names) {
    at = out.shards.size();
    out.shards.push_back((fs::path(path).parent_path() / name).string());
    std::error_code ignored;
    if (!fs::exists(out.shards.back(), ignored)) missing.insert(name);
  }
  if (!missing.empty())
    throw_file_error(FileKind::model, path,
                     cat("names ", names.size(), " files of weights, ", missing.size(),
                         " missing: ", escaped_list(missing)),
                     "E-FILE-MISSING", "copy them into the folder of the index");
  for (const auto& [tensor, shard] : map.items())
    out.weight_map.emplace(tensor, names.at(shard.get_ref<const std::string&>()));
  return out;
}

}  // namespace scgraft
