// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/scbert/network.h"

namespace scgraft {

// An scBERT folder in memory: config.json and the weights.
struct ScbertModel {
  std::string path;
  ScbertConfig config;
  nlohmann::json sizes;  // all of config.json
  std::unique_ptr<ScbertNetwork> network;
  std::string fingerprint;           // of the weights; ties adapters to their base
  std::vector<std::string> ignored;  // tensors that are known and not part of the network
};

struct ScbertLoadOptions {
  DType dtype = DType::f32;  // f64 for gradient checks
  // A fresh classifier of cells of this many classes and no other head; 0: the file's heads.
  int64_t new_head_classes = 0;
  uint64_t seed = 0;  // of that classifier
  bool heads = true;  // false: none of the file's
  // Tensors beyond the network's that the caller reads itself (adapters inside the file).
  std::function<bool(const std::string& name)> claims = {};
};

// Loads config.json and the weights of a pre-trained or fine-tuned checkpoint, with the head that
// the file has. The table of positions, f64 in published files, is rounded to the model's type.
// Every tensor of the file is used, known to be without use (the counter of redraws), or claimed by
// the caller: anything missing, left over or of another shape throws ModelError naming the first
// five.
ScbertModel load_scbert(const std::string& folder, const ScbertLoadOptions& options = {});

// Writes a folder that load_scbert() reads: model.safetensors, config.json, genes.txt where it lay
// in the model's folder, and labels.json where there are labels. `folder` must exist. Throws
// StorageError.
void save_scbert(const std::string& folder, const ScbertModel& model,
                 const std::vector<std::string>& labels = {});

}  // namespace scgraft
