// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>

namespace scgraft::gpu {

// Whether kernels compiled for a list of architectures run on a device.
//
//   list        as CMake spells them, with commas: "75-real,80,90a-real". N-real is machine code,
//   which runs on
//               devices of the same major and at least the same minor number, and with the suffix a
//               on that device alone; N-virtual is code that the driver translates for any device
//               from N on; plain N is both.
//   capability  75 for compute capability 7.5
bool runs_on(std::string_view list, int capability);

// "75 80 90a", for messages.
std::string readable_architectures(std::string_view list);

}  // namespace scgraft::gpu
