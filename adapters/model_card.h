// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

#include "adapters/store.h"

namespace scgraft {

// README.md of an adapter directory: front matter of the Hugging Face hub, then what the adapter
// is, its classes and its figures.
//   parameters  elements of all tensors in the directory
std::string model_card(const std::string& name, const AdapterBundle& bundle, int64_t parameters);

}  // namespace scgraft
