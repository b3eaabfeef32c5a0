// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/pool.h"

namespace scgraft {

// How the value of a token enters (input_emb_style).
enum class ValueStyle { continuous, category, scaling };
// How the decoder of genes from cells is built (mvc_decoder_style).
enum class MvcStyle { inner_product, concat_query, sum_query };

// Sizes and conventions of an scGPT network, under the names of its args.json.
struct ScgptConfig {
  int64_t vocab = 0;       // rows of the gene embedding
  int64_t dim = 512;       // embsize
  int64_t heads = 8;       // nheads
  int64_t layers = 12;     // nlayers
  int64_t ffn = 512;       // d_hid
  int64_t cls_layers = 3;  // n_layers_cls: linears of the classification head
  double dropout = 0.2;
  // The layers normalise what they read (EncoderLayer::pre_norm). The original knows this in its
  // fast layers only: where args.json says "fast_transformer": false, "pre_norm" does nothing.
  bool pre_norm = false;
  int64_t n_bins = 51;
  double pad_value = -2;
  double mask_value = -1;
  int64_t max_seq_len = 1200;
  std::string pad_token = "<pad>";
  ValueStyle value_style = ValueStyle::continuous;
  // cell_emb_style: cls; avg-pool (mean); w-pool (weighted, then L2 normalised).
  Pooling cell_style = Pooling::cls;
  MvcStyle mvc_style = MvcStyle::inner_product;
  int64_t categories = 0;      // rows of the table of ValueStyle::category
  int64_t flags = 0;           // rows of the perturbation flags' table; 0: no perturbation network
  int64_t flag_pad = 0;        // the flag whose row is not trained (pert_pad_id)
  int64_t batches = 0;         // rows of the batch labels' table that heads read; 0: they do not
  bool batch_norm = false;     // of the tokens, one for all data
  int64_t domains = 0;         // or one per domain; 0: none
  bool domain_affine = false;  // those have gamma and beta
  int64_t adversary_layers = 0;  // linears of the head that tells batches apart; 0: none

  // What every verb runs: continuous values, the first token as the cell, and neither batch labels
  // nor perturbations. The published models are of this kind.
  bool plain() const;

  // The cell embedding that goes with a kind of values where args.json does not say it, as those
  // that pre-training writes do not: cls with continuous ones, avg-pool with categories, w-pool
  // with scaling.
  static Pooling usual_cell_style(ValueStyle values);

  // Reads args.json; every size that is missing keeps its default, cell_emb_style the usual one.
  // Throws ModelError naming the key for a
  // value of the wrong kind, an unknown style, or sizes that do not divide.
  static ScgptConfig from_args(const nlohmann::json& args, const std::string& file);
  nlohmann::json to_args() const;

  // Published and small shapes: "tiny", "small", "base", "whole-human". Throws ConfigError.
  static ScgptConfig preset(const std::string& name);

  void check(const std::string& file) const;
};

}  // namespace scgraft
