// SPDX-License-Identifier: Apache-2.0
#include "app/doctor/checks.h"

#include <fmt/format.h>
#include <hdf5.h>
#include <langinfo.h>
#include <sys/resource.h>
#include <unistd.h>

#include <clocale>
#include <filesystem>
#include <fstream>
#include <limits>

#include "io/hdf5.h"
#include "io/hdf5_lzf.h"
#include "runtime/cat.h"
#include "runtime/cpu.h"
#include "runtime/version.h"

namespace scgraft {
namespace {

constexpr double kGB = 1e9;
constexpr double kLittleMemory = 4 * kGB;  // a small model and a window of cells
constexpr double kLittleDisk = 5 * kGB;    // a checkpoint of a large model, twice

Check program() {
  return {"program", Health::ok, fmt::format("scgraft {} ({}), {}", kVersion, kGitHash, kCompiler),
          ""};
}

Check processor() {
  const bool wide = cpu_level() == CpuLevel::v4;
  return {"processor", Health::ok,
          fmt::format("{}, {}{}, {} threads", cpu_name(), wide ? "AVX-512" : "AVX2",
                      cpu_has_bf16() ? " with bf16" : "", default_threads()),
          ""};
}

// Bytes that programs can still get, as the kernel estimates them; 0 where it does not say.
double available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:")) return std::stod(line.substr(13)) * 1024;
  return 0;
}

Check memory() {
  const double available = available_memory();
  if (available == 0) return {"memory", Health::warn, "the system does not say", ""};
  const std::string found = fmt::format("{:.1f} GB available", available / kGB);
  if (available < kLittleMemory)
    return {"memory", Health::warn, found, "close other programs, or use a machine with more"};
  return {"memory", Health::ok, found, ""};
}

Check disk(const std::string& folder) {
  const std::string name = "disk " + folder;
  std::error_code fault;
  const std::filesystem::space_info space = std::filesystem::space(folder, fault);
  if (fault) return {name, Health::fail, fault.message(), "another folder for outputs: -o"};
  const double free = static_cast<double>(space.available);
  const std::string found = fmt::format("{:.1f} GB free", free / kGB);
  if (access(folder.c_str(), W_OK) != 0)
    return {name, Health::fail, found + ", not writable", "another folder for outputs: -o"};
  if (free < kLittleDisk) return {name, Health::warn, found, "free space, or another folder: -o"};
  return {name, Health::ok, found, ""};
}

Check hdf5_filters() {
  constexpr struct {
    H5Z_filter_t id;
    const char* name;
  } kFilters[] = {{H5Z_FILTER_DEFLATE, "gzip"},
                  {H5Z_FILTER_SHUFFLE, "shuffle"},
                  {H5Z_FILTER_SZIP, "szip"},
                  {hdf5::kLzfFilter, "lzf"},
                  {32001, "blosc"},
                  {32015, "zstd"}};
  hdf5::initialise();
  std::string have, lack;
  for (const auto& filter : kFilters) {
    std::string& list = H5Zfilter_avail(filter.id) > 0 ? have : lack;
    list += (list.empty() ? "" : ", ") + std::string(filter.name);
  }
  const std::string found = cat(have, lack.empty() ? "" : "; not ", lack);
  if (H5Zfilter_avail(H5Z_FILTER_DEFLATE) <= 0)
    return {"HDF5 filters", Health::warn, found, "files without compression"};
  return {"HDF5 filters", Health::ok, found, ""};
}

Check locale() {
  // What the environment asks for; the program itself always works in the C locale.
  const locale_t wanted = newlocale(LC_CTYPE_MASK, "", nullptr);
  if (wanted == nullptr)
    return {"locale", Health::warn, "the one of the environment is not installed",
            "LC_ALL=C.UTF-8"};
  const std::string encoding = nl_langinfo_l(CODESET, wanted);
  freelocale(wanted);
  if (encoding != "UTF-8")
    return {"locale", Health::warn, encoding + ": names outside ASCII may look wrong",
            "LC_ALL=C.UTF-8"};
  return {"locale", Health::ok, encoding, ""};
}

std::string limit_text(rlim_t limit, double unit, const char* name) {
  if (limit == RLIM_INFINITY) return "no limit";
  return fmt::format("{:.0f}{}", static_cast<double>(limit) / unit, name);
}

Check open_files() {
  constexpr rlim_t kFew = 256;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const bool few = limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < kFew;
  return {"open files", few ? Health::warn : Health::ok, limit_text(limit.rlim_cur, 1, ""),
          few ? "ulimit -n 1024" : ""};
}

Check address_space() {
  rlimit limit{};
  getrlimit(RLIMIT_AS, &limit);
  const bool limited = limit.rlim_cur != RLIM_INFINITY;
  return {"address space", limited ? Health::warn : Health::ok,
          limit_text(limit.rlim_cur, kGB, " GB") +
              (limited ? ": checkpoints are mapped and count against it" : ""),
          limited ? "ulimit -v unlimited" : ""};
}

}  // namespace

const char* health_name(Health health) {
  switch (health) {
    case Health::ok:
      return "OK";
    case Health::warn:
      return "WARN";
    case Health::fail:
      return "FAIL";
  }
  return "";
}

std::vector<Check> check_machine(const std::string& device, const std::string& folder) {
  std::vector<Check> checks = {program(), processor(), memory()};
  const std::vector<Check> gpus = check_gpus(device);
  checks.insert(checks.end(), gpus.begin(), gpus.end());
  checks.insert(checks.end(),
                {disk(folder), hdf5_filters(), locale(), open_files(), address_space()});
  return checks;
}

}  // namespace scgraft
