// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/peft_config.h"
#include "io/manifest.h"
#include "io/output.h"
#include "io/safetensors.h"
#include "io/weights_file.h"

namespace scgraft {

// An adapter directory:
//
//   adapter_config.json        PEFT's configuration (adapters/peft_config.h)
//   adapter_model.safetensors  adapter tensors under PEFT's keys, and the fully trained ones as
//                              base_model.model.<parameter name>
//   labels.json                {"classes": [...], "counts": [...], ...}
//   genes.tsv                  genes it was trained with, a name per line under "gene"
//   preprocess.json, metrics.json, baselines.safetensors
//   provenance.json            how it came about; "scgraft": base, adapter options, trained tensors
//   README.md                  model card
//   MANIFEST.sha256            all of the above
//
// Files of which there is nothing to say are absent.

// What a directory holds beside the adapter's tensors.
struct AdapterBundle {
  std::string base_path;
  std::string base_fingerprint;  // of the weights, Checkpoint::fingerprint(); empty: not known
  std::string base_kind;         // Backbone::kind()
  AdapterOptions options;
  bool has_adapter = true;  // false: only fully trained tensors (a head, or the whole model)

  std::vector<std::string> labels;  // ordered classes
  std::vector<int64_t> label_counts;
  nlohmann::json labels_extra;  // object: more keys of labels.json (temperature, colours)
  nlohmann::json preprocess, metrics, provenance;
  std::vector<std::string> genes;
  std::vector<NamedTensor> baselines;
};

// Writes the directory as a whole (io/output_folder.h): until all of it is on the disk, `folder`
// is what it was.
//   adapter        may be null; bundle.options and bundle.has_adapter are taken from it
//   saved_modules  parameters of `backbone` that were trained themselves (heads, biases, all)
// Throws StorageError, ConfigError (E-EXISTS), ModelError (E-ADAPTER) for an unusable bundle: names
// with line breaks, counts that do not fit the classes.
void save_adapter(const std::string& folder, const AdapterBundle& bundle, Adapter* adapter,
                  Backbone& backbone, std::span<Parameter* const> saved_modules,
                  Overwrite overwrite);

// A directory in memory, not yet tied to a backbone.
struct LoadedBundle {
  std::string folder;
  AdapterBundle bundle;  // baselines are views of baseline_tensors
  WeightsFile tensors;
  std::vector<std::string> saved;  // names of the backbone's parameters among them
  // False for a directory that PEFT wrote: there is no provenance.json, the base is not known, and
  // where the adapter goes follows from its configuration and tensors (adapters/peft_tensors.h).
  bool recorded = true;
  PeftConfig config;
  std::vector<Tensor> baseline_tensors;
};

// Reads a directory. Every file but README.md is compared with the manifest first. One that PEFT
// wrote may have adapter_model.bin in place of adapter_model.safetensors, as older versions write;
// it is read as data (io/torch_checkpoint.h).
// Throws ModelError: E-ADAPTER (no adapter, unknown kind, contradictions), E-ADAPTER-DAMAGED, and
// those of the readers.
LoadedBundle load_adapter(const std::string& folder);

// Makes the adapter, fills it and the trained parameters of `backbone`, and attaches it. Returns
// null when the directory holds no adapter. The backbone is changed only when everything fits; its
// head must have the width of bundle.labels already.
//   backbone_fingerprint  of the weights that `backbone` was loaded from
//   allow_base_mismatch   true: another base is a warning (W-ADAPTER-BASE)
// Throws ModelError: E-ADAPTER-BASE (made for another backbone), E-ADAPTER-TENSOR (any tensor
// missing, left over, of another shape or without numbers, the first five named).
std::unique_ptr<Adapter> attach_adapter(const LoadedBundle& loaded, Backbone& backbone,
                                        const std::string& backbone_fingerprint,
                                        bool allow_base_mismatch);

// Every file of the directory with what is wrong with it: damaged, missing, not listed, not
// readable. Throws ModelError (E-ADAPTER) when it is no adapter directory with a manifest.
std::vector<FileCheck> verify_adapter(const std::string& folder);

}  // namespace scgraft
