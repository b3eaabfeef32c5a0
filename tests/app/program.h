// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/terminal.h"

namespace scgraft::testing {

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

// The program in this process.
Outcome run_here(const std::vector<std::string>& arguments, const Terminal& terminal = {});
// The built program in a process of its own, streams kept apart. extra: text in front of the
// command, e.g. an assignment of the environment.
Outcome run_program(const std::vector<std::string>& arguments, const std::string& extra = {});

// A folder of this test that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const;

 private:
  std::string path_;
};

std::string read_text(const std::string& path);

}  // namespace scgraft::testing
