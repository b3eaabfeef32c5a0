// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace scgraft {

// Sizes and conventions of an scGPT network, under the names of its args.json.
struct ScgptConfig {
  int64_t vocab = 0;       // rows of the gene embedding
  int64_t dim = 512;       // embsize
  int64_t heads = 8;       // nheads
  int64_t layers = 12;     // nlayers
  int64_t ffn = 512;       // d_hid
  int64_t cls_layers = 3;  // n_layers_cls: linears of the classification head
  double dropout = 0.2;
  int64_t n_bins = 51;
  double pad_value = -2;
  double mask_value = -1;
  int64_t max_seq_len = 1200;
  std::string pad_token = "<pad>";

  // Reads args.json; every size that is missing keeps its default. Throws ModelError naming the key
  // for a value of the wrong kind, an unsupported style, or sizes that do not divide.
  static ScgptConfig from_args(const nlohmann::json& args, const std::string& file);
  nlohmann::json to_args() const;

  // Published and small shapes: "tiny", "small", "base", "whole-human". Throws ConfigError.
  static ScgptConfig preset(const std::string& name);

  void check(const std::string& file) const;
};

}  // namespace scgraft
