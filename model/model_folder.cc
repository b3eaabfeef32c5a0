// SPDX-License-Identifier: Apache-2.0
#include "model/model_folder.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/json.h"
#include "io/mapped_file.h"

namespace scgraft {
namespace {

constexpr const char* kLabels = "labels.json";

}  // namespace

void save_beside(const std::string& from, const std::string& to,
                 std::span<const std::string_view> parts, const std::vector<std::string>& labels) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(from, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool wanted = (labels.empty() && name == kLabels) ||
                        std::any_of(parts.begin(), parts.end(), [&](std::string_view part) {
                          return name.find(part) != std::string::npos;
                        });
    if (!wanted || !entry.is_regular_file(ignored)) continue;
    const auto file = MappedFile::open(entry.path().string(), FileKind::model);
    write_file((fs::path(to) / name).string(),
               {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()},
               Overwrite::replace);
  }
  if (!labels.empty())
    write_json((fs::path(to) / kLabels).string(), {{"classes", labels}}, Overwrite::replace);
}

}  // namespace scgraft
