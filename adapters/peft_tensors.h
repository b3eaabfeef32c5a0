// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "adapters/store.h"

namespace scgraft {

// What Python's PEFT calls the places of this program, and how its tensors become parameters here.
//
// PEFT wraps modules. Where a published network computes query, key and value in one of them, as
// scGPT does in self_attn.Wqkv, and a backbone here has three projections of its rows,
// self_attn.q_proj, k_proj and v_proj, one pair of PEFT stands for three of ours:
//
//   A [r, dim] of each,   B [3 dim, r]: rows of q, then of k, then of v
//
// and back, pairs (A_q, B_q), (A_v, B_v) of rank r become A = [A_q; A_v] [2 r, dim] and B of the
// two as blocks, [3 dim, 2 r], with zeros for k: the same sum. Other modules are one to one.
inline constexpr std::string_view kPackedModule = "Wqkv";

// A place in a packed projection: the module, and which third of its rows.
struct PackedPlace {
  std::string module;  // "transformer_encoder.layers.0.self_attn.Wqkv"
  int part = 0;        // 0 q, 1 k, 2 v
};
// Of a module path of ours. part < 0: it is a module of its own.
PackedPlace packed_place(const std::string& module_path);

// A directory that PEFT wrote, in the terms of make_adapter().
struct PeftTensors {
  AdapterOptions options;
  std::map<std::string, Tensor> adapter;       // values by names of its parameters
  std::map<std::string, std::string> trained;  // parameters of the backbone: their key in the file
  std::vector<std::string> faults;             // of tensors: missing, misshapen, without a place
};

// Places the tensors of `loaded`, of LoRA, HRA or OFT, on a backbone.
//
// - Keys may lack the outermost module of the backbone's paths ("bert."), as those of a bare
//   BertModel do.
// - With target_modules as a list, every module of the backbone that it names must have tensors. A
//   regular expression, exclude_modules and layers_to_transform are not evaluated: then the
//   tensors say which modules are meant.
// - Modules of a smaller rank than the largest (rank_pattern) get rows and columns of zeros, and
//   the factor by which a module's scale differs (alpha_pattern) goes into its B. Projections that
//   the file does not have in a run of layers get what changes nothing.
//
// Throws ModelError: E-ADAPTER-TENSOR when no tensor has a place at all, E-ADAPTER for patterns of
// ranks and alphas that are no names of modules.
PeftTensors place_peft_tensors(const LoadedBundle& loaded, Backbone& backbone);

}  // namespace scgraft
