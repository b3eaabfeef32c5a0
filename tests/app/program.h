// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/wait.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "app/run_main.h"
#include "tests/io/files.h"

namespace scgraft {

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
  // json()["result"] of a run that must have gone well.
  nlohmann::json result() const {
    const nlohmann::json document = json();
    return document.at("ok").get<bool>() ? document.at("result") : nlohmann::json();
  }
};

// The program in this process.
inline Outcome run_here(const std::vector<std::string>& arguments, const Terminal& terminal = {}) {
  std::ostringstream out;
  std::ostringstream err;
  const int code = run_main(arguments, out, err, terminal);
  return {code, out.str(), err.str()};
}

// The built program, or what the environment names in its place: tests may have moved to another
// machine together with it.
inline std::string program_path() {
  const char* named = std::getenv("SCGRAFT_PROGRAM");
  return named == nullptr ? SCGRAFT_PROGRAM : named;
}

// The built program in a process of its own. Arguments must not hold quotes.
inline Outcome run_program(const std::string& arguments, const std::string& environment = {}) {
  const TemporaryFolder folder;
  const std::string command = environment + " '" + program_path() + "' " + arguments + " > '" +
                              folder / "out" + "' 2> '" + folder / "err" + "'";
  const int status = std::system(command.c_str());
  return {WEXITSTATUS(status), read_text(folder / "out"), read_text(folder / "err")};
}

}  // namespace scgraft
