// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "io/checkpoint.h"

namespace scgraft {

// An adapter inside a whole-model checkpoint as scPEFT's two code lines write it. The arrays say
// what it is; with peft_config.json beside them (the main line), both must say the same. On scGPT,
// in the main line and, where it differs, in the one that made the published results, under
// transformer_encoder.layers.{i}:
//
//   LORA     self_attn.Wqkv.lora_A [2r, dim] (rows of q, then of v), lora_B [2 dim, r] (rows of q,
//            then of v), scale alpha / r; alpha is 1 where no peft_config.json has lora_alpha
//   ENCODER  space_adapter.fc1, .fc2: layout "norm"
//            Space_Adapter.D_fc1, .D_fc2, with MLP_Adapter.D_fc1, .D_fc2: layout "parallel"
//   TOKEN    value_encoder.adapter.fc1, .fc2, in no layer
//            value_encoder.Space_Adapter.D_fc1, .D_fc2
//   HRA      self_attn.Wqkv.hra_u [dim, r]: the same reflections of q, k and v, in the code of the
//            published results only
//   OFT      self_attn.Wqkv.R [blocks, n, n]: the same rotations of q, k and v, by the
//            skew-symmetric part of each block (Array::Form::rotation), in the same code only. The
//            frozen projection is called Wqkv.OFT there. One R [n, n] for all blocks turns the
//            other way and is not read
//   PREFIX   adapter_embeddings [1, tokens, dim]
//            prompt_embeddings  [1, tokens, dim]
//
// and any of them together (HYBRID: ENCODER and TOKEN). On scBERT the kind is prompt_type in
// config.json:
//
//   LoRA                 performer.net.layers.{i}.0.fn.to_q, to_v .lora_A, .lora_B; scale 1 / r
//   Gene_encoder_prompt  performer.Encoder_Space.{i}, where space_conf has 1: layout "normed", and
//                        performer.Encoder_MLP.{i}, where mlp_conf has 1: layout "residual";
//                        .norm, .fn.D_fc1, .fn.D_fc2
//   Gene_token_prompt    Space_Adapter.D_fc1, .D_fc2
//   prefix_prompt        performer.net.prompt_embeddings.prompt_embeddings, the same in all layers
struct ScpeftAdapter {
  std::unique_ptr<Adapter> adapter;  // null when peft_config.json says that there is none

  // The arrays of scPEFT from ours: its name -> the parameters that it stands for.
  struct Array {
    enum class Form {
      rows,      // their rows follow each other in it
      same,      // each has all of its values
      rotation,  // it is R of OFT: each has the upper triangles of all (R_b - R_b^T) / 2
    };
    Shape shape;
    std::vector<Parameter*> parts;
    Form form = Form::rows;
  };
  std::map<std::string, Array> arrays;
  // Parameters of the backbone that scPEFT trains with this adapter (the packed biases of layers
  // with LoRA or HRA; those beside OFT stay), by canonical name.
  std::vector<std::string> trained_with_it;
};

// The same of scBERT, by its config.json. Throws as read_scpeft_adapter() does.
ScpeftAdapter read_scpeft_scbert_adapter(const nlohmann::json& config, const Checkpoint& file,
                                         Backbone& backbone);

// True for tensors that belong to an adapter and not to the backbone.
bool is_scpeft_tensor(const std::string& name);

// Reads the adapter in a file of scGPT. config: peft_config.json, or null. Throws ModelError for a
// kind or a layout that this version does not have, and for missing or misshaped tensors.
ScpeftAdapter read_scpeft_adapter(const nlohmann::json& config, const Checkpoint& file,
                                  Backbone& backbone);

}  // namespace scgraft
