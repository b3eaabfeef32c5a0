// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "io/h5ad.h"
#include "io/hdf5_out.h"

namespace scgraft {

// Adds a column encoded as categorical 0.2.0, with the narrowest codes that hold its categories.
void add_categorical(hdf5::OutNode& frame, const std::string& name, const Categorical& values);

// Puts the tables of `out`, a copy of `in`, into the current layout, so that they take new
// elements: where obs, var, obsm or varm is a compound dataset of anndata before 0.7, it becomes a
// group with the same columns and values. Categories come along from uns, which loses them. Numbers
// are kept as float32, float64 or int64.
//
// Throws StorageError (OutFile), DataError E-H5AD-LAYOUT for a column that cannot be kept: one with
// "/" in its name, or of values that Frame and obsm do not read.
void renew_tables(const H5ad& in, hdf5::OutFile& out);

}  // namespace scgraft
