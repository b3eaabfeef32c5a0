// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "io/hdf5.h"
#include "io/hdf5_out.h"

namespace scgraft::hdf5 {

// Copies the attributes and all members of the root group of a file into an empty new file. Stored
// chunks are copied as they are, without decoding; object references between members of one group
// point into the copy. Soft links stay links.
//
// Throws DataError about `from`: E-HDF5-LINK for a link into another file at the top, E-HDF5-READ
// for an object that cannot be copied; StorageError when the new file cannot be written.
void copy_file(const Node& from, OutFile& to);

}  // namespace scgraft::hdf5
