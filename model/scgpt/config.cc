// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/config.h"

#include <nlohmann/json.hpp>

#include "model/model_sizes.h"
#include "runtime/error.h"

namespace scgraft {

using nlohmann::json;

ScgptConfig ScgptConfig::from_args(const json& args, const std::string& file) {
  const ModelSizes sizes(args, file);
  ScgptConfig c;
  sizes.read("embsize", c.dim);
  sizes.read("nheads", c.heads);
  sizes.read("nlayers", c.layers);
  sizes.read("d_hid", c.ffn);
  sizes.read("n_layers_cls", c.cls_layers);
  sizes.read("dropout", c.dropout);
  sizes.read("n_bins", c.n_bins);
  sizes.read("pad_value", c.pad_value);
  sizes.read("mask_value", c.mask_value);
  sizes.read("max_seq_len", c.max_seq_len);
  if (args.contains("pad_token") && args["pad_token"].is_string())
    c.pad_token = args["pad_token"].get<std::string>();
  sizes.expect("input_emb_style", "continuous");
  return c;
}

json ScgptConfig::to_args() const {
  return {{"embsize", dim},
          {"nheads", heads},
          {"nlayers", layers},
          {"d_hid", ffn},
          {"n_layers_cls", cls_layers},
          {"dropout", dropout},
          {"n_bins", n_bins},
          {"pad_token", pad_token},
          {"pad_value", pad_value},
          {"mask_value", mask_value},
          {"max_seq_len", max_seq_len},
          {"input_style", "binned"},
          {"input_emb_style", "continuous"},
          {"MVC", true},
          {"no_cls", true}};
}

ScgptConfig ScgptConfig::preset(const std::string& name) {
  ScgptConfig c;
  if (name == "tiny") {
    c.dim = 64, c.heads = 2, c.layers = 3, c.ffn = 64;
  } else if (name == "small") {
    c.dim = 128, c.heads = 4, c.layers = 6, c.ffn = 128;
  } else if (name == "base") {
    c.dim = 256, c.heads = 8, c.layers = 8, c.ffn = 256;
  } else if (name != "whole-human") {
    ConfigError error(cat("no preset is called \"", name, "\""), "E-PRESET");
    error.set_hint("--preset tiny, small, base or whole-human");
    throw error;
  }
  return c;
}

void ScgptConfig::check(const std::string& file) const {
  const json none = json::object();
  const ModelSizes sizes(none, file);
  sizes.positive("the vocabulary size", vocab, 1 << 24);
  sizes.positive("embsize", dim, 1 << 15);
  sizes.positive("nheads", heads, 1 << 10);
  sizes.positive("nlayers", layers, 1 << 10);
  sizes.positive("d_hid", ffn, 1 << 17);
  sizes.positive("n_layers_cls", cls_layers, 64);
  sizes.positive("n_bins", n_bins, 1 << 15);
  if (dim % heads != 0) sizes.fail(cat("embsize ", dim, " is not a multiple of nheads ", heads));
  sizes.probability("dropout", dropout);
}

}  // namespace scgraft
