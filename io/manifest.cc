// SPDX-License-Identifier: Apache-2.0
#include "io/manifest.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>

#include "io/limits.h"
#include "io/mapped_file.h"
#include "io/output.h"
#include "io/sha256.h"
#include "io/storage_error.h"
#include "io/text.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

constexpr size_t kDigits = 64;

std::string in(const std::string& folder, const std::string& name) {
  return (fs::path(folder) / name).string();
}

// Names of everything in a folder that is no folder, without the manifest.
std::set<std::string> files_of(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (!fs::is_directory(it->symlink_status())) names.insert(it->path().filename().string());
  if (error) throw_storage_error("list the folder", folder, error.value());
  names.erase(kManifestFile);
  return names;
}

bool is_digest(std::string_view text) {
  return text.size() == kDigits && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// Only names inside the folder: what a line says is opened.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name != kManifestFile &&
         name.find('/') == name.npos && name.find('\0') == name.npos;
}

std::string fault_of(const std::string& path, std::string_view wanted) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return "is missing";
  if (!fs::is_regular_file(status)) return "is not a regular file";
  if (sha256_of_file(path) != wanted) return "has another content than when it was written";
  return "";
}

}  // namespace

void write_manifest(const std::string& folder) {
  std::string text;
  for (const std::string& name : files_of(folder))
    text += cat(sha256_of_file(in(folder, name)), "  ", name, "\n");
  write_file(in(folder, kManifestFile), text, Overwrite::replace);
}

std::vector<FileCheck> check_manifest(const std::string& folder) {
  const std::string path = in(folder, kManifestFile);
  const auto file = MappedFile::open(path, FileKind::model);
  const auto fail = [&](const std::string& message) {
    throw_file_error(FileKind::model, path, message, "E-MANIFEST",
                     "the folder may be damaged; fetch it again");
  };
  if (file->size() > limits::kStringBytes)
    fail(cat("has ", file->size(), " bytes, the limit is ", limits::kStringBytes));
  std::string_view rest(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  std::vector<FileCheck> checks;
  std::set<std::string> listed;
  for (int line = 1; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const std::string_view digest = text.substr(0, kDigits);
    const std::string name(text.substr(std::min(kDigits + 2, text.size())));
    if (!is_digest(digest) || text.substr(kDigits, 2) != "  " || !is_plain_name(name))
      fail(cat("line ", line, " is not \"<sha256>  <file name>\": ", escaped(text)));
    if (!listed.insert(name).second) fail(cat("lists ", escaped(name), " twice"));
    checks.push_back({name, fault_of(in(folder, name), digest)});
  }
  for (const std::string& name : files_of(folder))
    if (!listed.contains(name)) checks.push_back({name, cat("is not listed in ", kManifestFile)});
  return checks;
}

}  // namespace scgraft
