// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/vocabulary.h"
#include "model/scgpt/network.h"

namespace scgraft {

// An scGPT checkpoint folder in memory: args.json, vocab.json and the weights.
struct ScgptModel {
  std::string path;
  ScgptConfig config;
  Vocabulary vocabulary;  // with <pad>, <cls>, <eoc>
  std::unique_ptr<ScgptNetwork> network;
  std::string fingerprint;           // of the weights; ties adapters to their base
  std::vector<std::string> ignored;  // tensors that are known and not part of the network

  int32_t cls_id() const { return vocabulary.id("<cls>"); }
  int32_t pad_id() const { return vocabulary.id(config.pad_token); }
};

struct ScgptLoadOptions {
  DType dtype = DType::f32;  // f64 for gradient checks
  // A fresh classification head of this many classes, whatever the file has; 0: the file's own.
  int64_t new_head_classes = 0;
  uint64_t seed = 0;              // of a fresh head
  bool pretraining_heads = true;  // load the expression decoder and the MVC head when present
  // Also models that are not plain (ScgptConfig::plain()), which the caller then runs as such.
  bool all_styles = false;
  // Tensors beyond the network's that the caller reads itself (adapters inside the file).
  std::function<bool(const std::string& name)> claims = {};
};

// Loads a folder in any of the three published key layouts (Wqkv, _impl.Wqkv, in_proj). Every
// tensor of the file is used, known to be without use (flag_encoder), or claimed by the caller:
// anything missing, left over or of another shape throws ModelError naming the first five. What
// args.json does not say of the network's parts is read from the tensors that the file has.
ScgptModel load_scgpt(const std::string& folder, const ScgptLoadOptions& options = {});

// The name a tensor has here, for a name in any published layout.
std::string canonical_scgpt_name(const std::string& name);

// Writes a folder that load_scgpt() reads: args.json, vocab.json, model.safetensors, and
// labels.json where there are labels. `folder` must exist. Throws StorageError.
void save_scgpt(const std::string& folder, const ScgptModel& model,
                const std::vector<std::string>& labels = {});

}  // namespace scgraft
