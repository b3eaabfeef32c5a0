// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/geneformer/network.h"

namespace scgraft {

// A Geneformer folder in memory: config.json and the weights.
struct GeneformerModel {
  std::string path;
  GeneformerConfig config;
  nlohmann::json sizes;  // all of config.json
  std::unique_ptr<GeneformerNetwork> network;
  std::string fingerprint;           // of the weights; ties adapters to their base
  std::vector<std::string> ignored;  // tensors that are known and not part of the network
};

struct GeneformerLoadOptions {
  DType dtype = DType::f32;  // f64 for gradient checks
  // A fresh classifier of cells of this many classes, with the file's pooler or, where it has none,
  // a fresh one, and no other head; 0: the file's heads.
  int64_t new_head_classes = 0;
  uint64_t seed = 0;  // of what is fresh
  bool heads = true;  // false: none of the file's
  // Tensors beyond the network's that the caller reads itself (adapters inside the file).
  std::function<bool(const std::string& name)> claims = {};
};

// Loads a Hugging Face directory of BertForMaskedLM, BertForSequenceClassification,
// BertForTokenClassification or BertModel: config.json and model.safetensors or pytorch_model.bin,
// or their shards with an index (open_checkpoint()). The heads are those of the file; the decoder
// of words is tied to the word embedding, and a file that has it once more must have the same
// numbers there. Every tensor of the file is used, known to be without use (position_ids), or
// claimed by the caller: anything missing, left over or of another shape throws ModelError naming
// the first five.
GeneformerModel load_geneformer(const std::string& folder,
                                const GeneformerLoadOptions& options = {});

// The name a tensor has here, for a name in any published layout: BertModel alone has no "bert.",
// and old files say gamma and beta.
std::string canonical_geneformer_name(const std::string& name);

// Writes a Hugging Face directory with the heads of the network, which load_geneformer() and
// transformers read: model.safetensors under the names of a model with heads, config.json with what
// the model's had, and the dictionaries that lay in the model's folder. Where there are labels,
// labels.json is written too and config.json becomes that of BertForSequenceClassification with
// these classes. `folder` must exist. Throws StorageError.
void save_geneformer(const std::string& folder, const GeneformerModel& model,
                     const std::vector<std::string>& labels = {});

}  // namespace scgraft
