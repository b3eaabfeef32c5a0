// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "app/config/load.h"
#include "app/session.h"

namespace scgraft {

// Throws ConfigError (E-MISSING) when a setting that a verb cannot do without is empty.
void require_set(const std::string& value, const std::string& flag, const std::string& what);

// The folder of a run: made at the start with resolved_config.yaml, and marked complete by
// _SUCCESS.json at the end.
class RunFolder {
 public:
  // results: what the run will make there. ConfigError (E-EXISTS) when one exists and --force was
  // not given.
  RunFolder(Session& session, const RunConfig& config, const Origins& origins,
            const std::vector<std::string>& results);

  const std::string& path() const { return path_; }
  void finish() const;

 private:
  Session& session_;
  std::string path_;
};

}  // namespace scgraft
