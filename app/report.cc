// SPDX-License-Identifier: Apache-2.0
#include "app/report.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/json.h"
#include "io/sha256.h"
#include "runtime/version.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string document(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<std::string> files_of(const std::string& path) {
  if (!fs::is_directory(path)) return {path};
  std::vector<std::string> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

Json outputs_of(const Session& session) {
  Json outputs = Json::array();
  for (const std::string& path : session.outputs())
    for (const std::string& file : files_of(path))
      outputs.push_back({{"path", file},
                         {"sha256", sha256_of_file(file)},
                         {"bytes", static_cast<int64_t>(fs::file_size(file))}});
  return outputs;
}

}  // namespace

std::string success_document(const Session& session) {
  Json warnings = Json::array();
  for (const Warning& warning : session.log().warnings())
    warnings.push_back({{"code", warning.code}, {"message", warning.message}});
  const Json outputs = outputs_of(session);
  Json times = {{"total", session.elapsed_s()}};
  for (const auto& [part, seconds] : session.times()) times[part] = seconds;
  return document({{"schema", cat("scgraft/", session.verb(), "/1")},
                   {"ok", true},
                   {"version", kVersion},
                   {"result", with_finite_numbers(session.result())},
                   {"warnings", warnings},
                   {"timing_s", times},
                   {"outputs", outputs}});
}

std::string error_document(const Error& error) {
  return document({{"schema", "scgraft/error/1"},
                   {"ok", false},
                   {"version", kVersion},
                   {"error",
                    {{"code", error.code()},
                     {"exit", static_cast<int>(error.exit_code())},
                     {"message", error.what()},
                     {"hint", error.hint()},
                     {"where", {{"file", error.file()}, {"path", error.path()}}}}}});
}

std::string error_text(const Error& error, bool colour) {
  const std::string message = printable(error.what());
  std::string text = cat(colour ? "\x1b[31merror\x1b[0m " : "error ", error.code(), ": ", message);
  text += "\n";
  // The message usually names the file already.
  if (!error.file().empty() && message.find(printable(error.file())) == std::string::npos)
    text += cat("  in: ", printable(error.file()), "\n");
  if (!error.hint().empty()) text += cat("  try: ", printable(error.hint()), "\n");
  if (error.exit_code() == ExitCode::bug && error.code() != "E-MEMORY")
    text += cat("  this is a fault of scgraft ", kVersion, " (", kGitHash,
                "): please report it with the command and this message\n");
  return text;
}

}  // namespace scgraft
