// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/scfoundation/network.h"

namespace scgraft {

// A branch of a scFoundation checkpoint in memory.
struct ScfoundationModel {
  std::string path;
  std::string branch;
  ScfoundationConfig config;
  nlohmann::json sizes;  // as a config.json has them
  std::unique_ptr<ScfoundationNetwork> network;
  std::string fingerprint;           // of the weights; ties adapters to their base
  std::vector<std::string> ignored;  // tensors that are known and not part of the network
};

struct ScfoundationLoadOptions {
  DType dtype = DType::f32;  // f64 for gradient checks
  // Which of the published networks: "cell", "rde" or "gene".
  std::string branch = "gene";
  // A fresh classifier of cells of this many classes; 0: the file's, which no published one has.
  int64_t new_head_classes = 0;
  uint64_t seed = 0;    // of that classifier
  bool heads = true;    // false: the file's classifier is ignored
  bool decoder = true;  // false: its tensors are ignored
  // Tensors beyond the network's that the caller reads itself (adapters inside the file).
  std::function<bool(const std::string& name)> claims = {};
};

// Loads models.ckpt of a folder, a dictionary of branches with "config" and "state_dict" each. The
// sizes are those of the branch; a branch without "config" takes config.json beside the file. Of
// names everything up to the first "model." is left out. Tensors of another floating type are
// rounded to the model's. A folder without models.ckpt holds one branch, as save_scfoundation()
// writes it. Every tensor of the branch is used, known to be without use (the counter
// of redraws), or claimed by the caller: anything missing, left over or of another shape throws
// ModelError naming the first five, and so does a branch that the file does not have, naming
// those it has.
ScfoundationModel load_scfoundation(const std::string& folder,
                                    const ScfoundationLoadOptions& options = {});

// Writes a folder of this one branch that load_scfoundation() reads: model.safetensors (metadata
// "branch"), config.json, the table of genes where it lay in the model's folder, and labels.json
// where there are labels. `folder` must exist. Throws StorageError.
void save_scfoundation(const std::string& folder, const ScfoundationModel& model,
                       const std::vector<std::string>& labels = {});

// The name a tensor has here, for one of a file: what follows the first "model.".
std::string canonical_scfoundation_name(const std::string& name);

}  // namespace scgraft
