// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "io/checkpoint.h"

namespace scgraft {

// An adapter taken out of the whole model that scPEFT saved it in.
struct ScpeftImport {
  std::unique_ptr<Adapter> adapter;  // not attached
  // Parameters of the backbone that were trained with it and have the file's values now: the head,
  // and the packed biases of layers with LoRA or HRA where they moved.
  std::vector<Parameter*> trained;
  // Weights of the file that hold the LoRA product already, as files saved in evaluation mode do,
  // with how often: W + n s B A. The adapter is meant once, beside the weights of the base.
  struct Merged {
    std::string weight;
    int times = 0;
  };
  std::vector<Merged> merged;
  // Tensors that the base has no place for and that do not matter: heads of pre-training.
  std::vector<std::string> ignored;
};

// Takes the adapter out of `file` and compares everything else with the base it is for.
//
//   config  peft_config.json of the file (for scBERT its config.json), or null
//   base    the pre-trained backbone; its heads must have the shapes of the file's. What was
//   trained
//           is written into it, and its weights must not be packed yet
//
// A frozen weight may differ from the base's by 1e-6 of its largest element, a merged one by 1e-4.
// Throws ModelError: E-SCPEFT (no adapter, an unknown one, tensors without a place here or of
// another shape, a backbone other than scGPT and scBERT), and
// E-ADAPTER-BASE naming the first five weights that are neither the base's nor merged.
ScpeftImport import_scpeft(const nlohmann::json& config, const Checkpoint& file, Backbone& base);
// Classes of the head in such a file; 0: there is none.
int64_t scpeft_classes(const Checkpoint& file);

}  // namespace scgraft
