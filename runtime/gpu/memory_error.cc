// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/memory_error.h"

#include <iomanip>

#include "runtime/error.h"

namespace scgraft::gpu {
namespace {

// "21.4 GB", "3 bytes": powers of ten, as drivers and disks count.
std::string readable(int64_t nbytes) {
  constexpr const char* kUnits[] = {" bytes", " kB", " MB", " GB", " TB"};
  auto value = static_cast<double>(nbytes);
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return cat(std::fixed, std::setprecision(unit == 0 ? 0 : 1), value, kUnits[unit]);
}

}  // namespace

void throw_out_of_memory(Device device, int64_t nbytes, MemoryInfo info) {
  Error error(cat("out of memory on ", device, ": ", readable(nbytes), " more are needed, ",
                  readable(info.free), " of ", readable(info.total), " are free"),
              "E-MEMORY");
  error.set_hint("lower --batch-size or --max-genes, or pass --device cpu");
  throw error;
}

}  // namespace scgraft::gpu
