// SPDX-License-Identifier: Apache-2.0
#include "runtime/out_of_memory.h"

#include <iomanip>

namespace scgraft {
namespace {

constexpr const char* kCode = "E-MEMORY";

}  // namespace

std::string readable_bytes(int64_t nbytes) {
  constexpr const char* kUnits[] = {" bytes", " kB", " MB", " GB", " TB"};
  auto value = static_cast<double>(nbytes);
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return cat(std::fixed, std::setprecision(unit == 0 ? 0 : 1), value, kUnits[unit]);
}

Error out_of_memory(Device device, int64_t nbytes, int64_t free, int64_t total,
                    const std::string& purpose) {
  Error error(cat(purpose, purpose.empty() ? "" : ": ", "out of memory on ", device, ": ",
                  readable_bytes(nbytes), " more are needed, ", readable_bytes(free), " of ",
                  readable_bytes(total), " are free"),
              kCode);
  error.set_hint(cat("lower --batch-size or --max-genes, raise --memory-limit if it is set",
                     device.is_cuda() ? ", or pass --device cpu" : ""));
  return error;
}

Error out_of_pinned_memory(int64_t nbytes) {
  Error error(cat("out of pinned memory of the host: ", readable_bytes(nbytes), " were asked for"),
              kCode);
  error.set_hint("lower --batch-size or --max-genes");
  return error;
}

bool is_out_of_memory(const Error& error) { return error.code() == kCode; }

}  // namespace scgraft
