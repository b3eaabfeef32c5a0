// SPDX-License-Identifier: Apache-2.0
#include "runtime/version.h"

#include <H5public.h>
#include <fmt/core.h>
#include <oneapi/dnnl/dnnl_version.h>
#include <openssl/crypto.h>
#include <spdlog/version.h>
#include <zip.h>
#include <zlib.h>

#include <Eigen/Core>

#include "app/add_verb.h"
#include "app/verbs.h"
#include "runtime/config.h"
#include "runtime/cpu.h"

namespace scgraft {
namespace {

struct Library {
  const char* name;
  std::string version;
  const char* licence;
};

std::string three(int major, int minor, int patch) {
  return fmt::format("{}.{}.{}", major, minor, patch);
}

std::vector<Library> libraries() {
  return {
      {"HDF5", three(H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE), "BSD-3-Clause"},
      {"zlib", ZLIB_VERSION, "Zlib"},
      {"libzip", zip_libzip_version(), "BSD-3-Clause"},
      {"OpenSSL", OpenSSL_version(OPENSSL_VERSION_STRING), "Apache-2.0"},
      {"nlohmann-json",
       three(NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH),
       "MIT"},
      {"CLI11", CLI11_VERSION, "BSD-3-Clause"},
      {"fmt", three(FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100), "MIT"},
      {"yaml-cpp", SCGRAFT_YAML_CPP_VERSION, "MIT"},
      {"Eigen", three(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION), "MPL-2.0"},
      {"oneDNN", three(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH), "Apache-2.0"},
      {"spdlog", three(SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH), "MIT"},
  };
}

void version(Session& session) {
  nlohmann::json& result = session.result();
  result = {{"version", kVersion},   {"git", kGitHash},         {"build", kBuildType},
            {"compiler", kCompiler}, {"licence", "Apache-2.0"}, {"cuda", kBuiltWithCuda}};
  result["cpu"] = {{"name", cpu_name()},
                   {"level", cpu_level() == CpuLevel::v4 ? "v4" : "v3"},
                   {"bf16", cpu_has_bf16()},
                   {"threads", default_threads()}};
  session.print(fmt::format("scgraft {} ({})\n{}, {}, CUDA {}\n{}: level {}, {} threads\n",
                            kVersion, kGitHash, kBuildType, kCompiler,
                            kBuiltWithCuda ? "yes" : "no", cpu_name(),
                            cpu_level() == CpuLevel::v4 ? "v4" : "v3", default_threads()));
  std::string list;
  for (const Library& library : libraries()) {
    result["libraries"][library.name] = {{"version", library.version},
                                         {"licence", library.licence}};
    list += fmt::format("{}{} {} ({})", list.empty() ? "with " : ", ", library.name,
                        library.version, library.licence);
  }
  session.print(list + "\n");
}

}  // namespace

void add_version(CLI::App& root, Session& session) {
  CLI::App& verb = add_verb(root, session,
                            {"version",
                             "Print version, build and libraries",
                             {"scgraft version", "scgraft version --json | jq .result.git"}},
                            [&session] { version(session); });
  add_common_flags(verb, session.flags(), {});
}

}  // namespace scgraft
