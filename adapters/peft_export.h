// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "adapters/store.h"

namespace scgraft {

// Writes what Python's PEFT opens of an adapter that this program saved, a folder of
// adapter_config.json, adapter_model.safetensors and a manifest: LoRA and HRA, with trained heads
// as modules_to_save, under the module paths of the published network. Query, key and value that
// are one module there become one pair (adapters/peft_tensors.h). It appears as a whole.
//
// Throws ModelError (E-ADAPTER-EXPORT) for what PEFT has no type for (the other kinds, heads alone,
// single trained tensors, reflections of a packed projection, packed projections of a network whose
// module is no linear layer); StorageError, ConfigError (E-EXISTS).
void export_peft(const LoadedBundle& loaded, const std::string& folder, Overwrite overwrite);

}  // namespace scgraft
