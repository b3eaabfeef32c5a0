// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

namespace scgraft {

// Which backbone a published checkpoint folder holds: "geneformer", "scbert" or "scgpt", by the
// files of sizes in it. Throws ModelError (E-MODEL-FOLDER) that says what a folder of each kind
// has.
std::string folder_kind(const std::string& folder);

}  // namespace scgraft
