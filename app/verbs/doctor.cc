// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "app/add_verb.h"
#include "app/doctor/checks.h"
#include "app/table.h"
#include "app/verbs.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

void doctor(Session& session, const std::string& folder) {
  const std::vector<Check> checks = check_machine(session.flags().device, folder);
  Table table({"", "", "", ""});
  nlohmann::json list = nlohmann::json::array();
  for (const Check& check : checks) {
    const std::string fix = check.fix.empty() ? "" : "try: " + escaped(check.fix);
    table.add({health_name(check.health), escaped(check.what), escaped(check.found), fix});
    list.push_back({{"check", check.what},
                    {"health", health_name(check.health)},
                    {"found", check.found},
                    {"fix", check.fix}});
  }
  session.result() = {{"checks", list}};
  session.print(table.text());
  const auto failed = std::ranges::find(checks, Health::fail, &Check::health);
  if (failed == checks.end()) return;
  // Only the device asked for and the folder for outputs can fail.
  const bool device = failed->what == "device";
  Error error(cat(failed->what, ": ", failed->found), device ? "E-DEVICE" : "E-STORAGE",
              device ? ExitCode::device : ExitCode::storage);
  error.set_hint(failed->fix);
  throw error;
}

}  // namespace

void add_doctor(CLI::App& root, Session& session) {
  auto folder = std::make_shared<std::string>(".");
  CLI::App& verb =
      add_verb(root, session,
               {"doctor",
                "Check this machine: GPU, driver, memory, disk, libraries",
                {"scgraft doctor", "scgraft doctor --device cuda --folder /scratch/runs"}},
               [&session, folder] { doctor(session, *folder); });
  verb.add_option("--folder", *folder, "Where outputs will be written")->type_name("DIR");
  add_common_flags(verb, session.flags(), {.compute = true});
}

}  // namespace scgraft
