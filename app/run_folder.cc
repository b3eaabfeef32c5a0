// SPDX-License-Identifier: Apache-2.0
#include "app/run_folder.h"

#include <filesystem>

#include "io/json.h"
#include "io/output.h"
#include "runtime/version.h"

namespace scgraft {

namespace fs = std::filesystem;

void require_set(const std::string& value, const std::string& flag, const std::string& what) {
  if (!value.empty()) return;
  throw ConfigError(cat(flag, " is missing: ", what), "E-MISSING");
}

RunFolder::RunFolder(Session& session, const RunConfig& config, const Origins& origins,
                     const std::vector<std::string>& results)
    : session_(session), path_(config.output_dir) {
  for (const std::string& result : results) {
    const fs::path path = fs::path(path_) / result;
    if (session.flags().force || !fs::exists(path)) continue;
    ConfigError error(cat(path.string(), " exists already"), "E-EXISTS");
    error.set_hint("give another folder with -o, or --force to replace it");
    throw error;
  }
  // What can be seen to be wrong before any work is said before anything is written.
  if (!fs::exists(config.data.train)) {
    DataError error(cat("there is no file ", config.data.train), "E-NO-FILE");
    error.set_where(config.data.train);
    throw error;
  }
  make_directory(path_);
  std::error_code ignored;
  fs::remove(fs::path(path_) / "_SUCCESS.json", ignored);
  write_file((fs::path(path_) / "resolved_config.yaml").string(), resolved_yaml(config, origins),
             Overwrite::replace);
}

void RunFolder::finish() const {
  write_json((fs::path(path_) / "_SUCCESS.json").string(),
             {{"version", kVersion}, {"git", kGitHash}, {"verb", session_.verb()}},
             Overwrite::replace);
}

}  // namespace scgraft
