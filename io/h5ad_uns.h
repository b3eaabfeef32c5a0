// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "io/hdf5_out.h"

namespace scgraft {

// Adds a JSON value as an element of an AnnData file, the way anndata stores the Python object:
// object: dict 0.1.0, its members one by one; text: string; whole number: int64; other number:
// float64; truth value: bool; array of texts, numbers or truth values: string-array or array.
// Members that are null are left out, which every anndata reads. A whole number above 2^63 - 1
// becomes its decimal text, an empty array an array of no float64.
//
// Throws TypeError for arrays of anything else and ConfigError E-SLOT-NAME for a key that is empty
// or holds "/", which HDF5 cannot name.
void add_json(hdf5::OutNode& parent, const std::string& name, const nlohmann::json& value);

// Throws ConfigError E-SLOT-NAME unless `name` can name an element of an AnnData file.
void require_element_name(const std::string& name);

}  // namespace scgraft
