// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft::gpu::emulated {

// Appends to the file that SCGRAFT_EMULATOR_LAUNCHES names, if it does, that a kernel was launched
// with blocks of `threads` and so many bytes of shared memory: a line of the program's path, the
// kernel's place in it as nm prints it, threads and bytes, with tabs between. A kernel has a line
// for its first launch in a process, and one whenever it took more than before. What cannot be
// written is not: the log is for tools/registers, and does not stop a launch.
void log_launch(const void* kernel, int threads, int64_t shared_bytes);

}  // namespace scgraft::gpu::emulated
