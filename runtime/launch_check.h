// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/error.h"

namespace scgraft {

// SCGRAFT_SYNC=1 in the environment: wait for every kernel after its launch.
bool synchronous_launches();

// Throws `error` again with the operation in front of its text.
[[noreturn]] void rethrow_naming(const char* op, const DeviceError& error);

}  // namespace scgraft
