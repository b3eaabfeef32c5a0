// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

namespace scgraft {

// Which backbone a published checkpoint folder holds: "geneformer", "scbert", "scfoundation" or
// "scgpt", by the files of sizes in it, or of weights that have their sizes inside. Throws
// ModelError (E-MODEL-FOLDER) that says what a folder of each kind has.
std::string folder_kind(const std::string& folder);

}  // namespace scgraft
