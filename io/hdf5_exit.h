// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <hdf5.h>

namespace scgraft::hdf5 {

// The C library's exit handler closes what is still open, and crashes in HDF5 1.10 when closing a
// file failed before, as on a full disk. Everything here is closed by its owner, so the handler is
// not installed. It has to be said before the library's first call, hence at start-up; include this
// in every source that writes files.
inline const bool kNoExitHandler = H5dont_atexit() >= 0;

}  // namespace scgraft::hdf5
