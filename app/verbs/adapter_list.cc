// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "adapters/store.h"
#include "app/add_verb.h"
#include "app/table.h"
#include "app/verbs/adapter_verbs.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

constexpr int kDepth = 4;  // of folders below those that are asked for

// Folders with an adapter, by name; links are not followed.
void find_adapters(const fs::path& folder, int depth, std::vector<std::string>& out) {
  std::error_code ignored;
  if (fs::exists(folder / "adapter_config.json", ignored)) {
    out.push_back(folder.string());
    return;
  }
  if (depth == 0) return;
  std::vector<fs::path> below;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.is_directory(ignored) && !entry.is_symlink(ignored)) below.push_back(entry.path());
  std::sort(below.begin(), below.end());
  for (const fs::path& each : below) find_adapters(each, depth - 1, out);
}

void list(Session& session, const std::vector<std::string>& roots) {
  const auto timer = session.time("io");
  std::vector<std::string> found;
  for (const std::string& root : roots) {
    std::error_code ignored;
    require<DataError>(fs::is_directory(root, ignored), escaped(root), ": there is no such folder");
    find_adapters(root, kDepth, found);
  }
  Table table({"adapter", "type", "base", "parameters", "classes", "state"});
  nlohmann::json adapters = nlohmann::json::array();
  for (const std::string& path : found) try {
      const LoadedBundle loaded = load_adapter(path);
      const AdapterBundle& bundle = loaded.bundle;
      int64_t parameters = 0;
      for (const TensorInfo& info : loaded.tensors.tensors()) parameters += info.numel();
      const std::string type = bundle.has_adapter ? bundle.options.type : "none";
      const std::string base =
          bundle.base_fingerprint.empty()
              ? bundle.base_kind
              : cat(bundle.base_kind, " ", bundle.base_fingerprint.substr(0, 12));
      table.add({path, type, base, fmt::format("{}", parameters),
                 fmt::format("{}", bundle.labels.size()), "OK"});
      adapters.push_back({{"path", path},
                          {"type", bundle.has_adapter ? nlohmann::json(type) : nlohmann::json()},
                          {"base",
                           {{"kind", bundle.base_kind},
                            {"path", bundle.base_path},
                            {"fingerprint", bundle.base_fingerprint}}},
                          {"parameters", parameters},
                          {"labels", bundle.labels},
                          {"error", nullptr}});
    } catch (const Error& error) {  // the others are listed all the same
      table.add({path, "", "", "", "", std::string(error.code())});
      adapters.push_back(
          {{"path", path}, {"error", {{"code", error.code()}, {"message", error.what()}}}});
    }
  session.result() = {{"adapters", adapters}};
  session.print(found.empty() ? "no adapter\n" : table.text());
}

}  // namespace

void add_adapter_list(CLI::App& parent, Session& session) {
  auto roots = std::make_shared<std::vector<std::string>>();
  CLI::App& verb = add_verb(parent, session,
                            {"list",
                             "List the adapters in folders",
                             {"scgraft adapter list runs", "scgraft adapter list . --json"}},
                            [&session, roots] { list(session, *roots); });
  verb.add_option("DIR", *roots, "Folders to look into, four levels deep")->required();
  add_common_flags(verb, session.flags(), {});
}

}  // namespace scgraft
