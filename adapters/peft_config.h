// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "adapters/adapter.h"

namespace scgraft {

// adapter_config.json in the words of Hugging Face PEFT, so that its loader and this one read the
// same folder. Kinds that PEFT does not have are called SCGRAFT_<KIND>, and SCGRAFT_MODULES is a
// folder without an adapter, of fully trained modules only; PEFT refuses both.
struct PeftConfig {
  std::string kind;                          // of adapter_kinds(); empty: modules only
  std::string base_path;                     // base_model_name_or_path
  int64_t rank = 8;                          // r
  double alpha = 8;                          // lora_alpha
  double dropout = 0;                        // lora_dropout
  int64_t blocks = 0;                        // oft: r; 0 with a block_size
  int64_t block_size = 0;                    // oft_block_size; 0: by blocks
  double constraint = 0;                     // oft: eps; 0 without coft
  bool every_layer = true;                   // prefix_tuning: else it is a kind of ours
  int64_t tokens = 8;                        // prefix_tuning: num_virtual_tokens
  int64_t layers = 0, dim = 0, heads = 0;    // the same: of the backbone
  std::vector<std::string> target_modules;   // module paths, or endings of them
  std::vector<std::string> modules_to_save;  // as above
  // Whether target_modules alone says which modules are meant: it is a list, and nothing else
  // (exclude_modules, layers_to_transform) takes any away.
  bool plain_targets = true;
  // Ranks and alphas of modules that differ, by ending of their path (rank_pattern, alpha_pattern).
  std::map<std::string, int64_t> ranks;
  std::map<std::string, double> alphas;
  bool rank_stabilised = false;  // the scale is alpha / sqrt(r) (use_rslora)

  // What B A of a module is multiplied with.
  double scale(int64_t module_rank, double module_alpha) const;
};

nlohmann::json to_json(const PeftConfig& config);

// Throws ModelError (E-ADAPTER) naming the key: no peft_type, an unknown one, values of the wrong
// kind, and what changes the mathematics and is not computed here (DoRA, biases, transposed
// weights, reflections made orthogonal, rotations by a series or shared by blocks, starts that
// change the base). Keys that no release of PEFT up to 0.21 has are left out with a warning
// (W-ADAPTER-CONFIG).
//   file  name for messages
PeftConfig peft_config_from_json(const nlohmann::json& json, const std::string& file);

}  // namespace scgraft
