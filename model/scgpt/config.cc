// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/config.h"

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& file, const std::string& message) {
  ModelError error(message, "E-MODEL-CONFIG");
  error.set_where(file);
  throw error;
}

void read(const json& args, const char* key, int64_t& to, const std::string& file) {
  if (!args.contains(key) || args[key].is_null()) return;
  if (!args[key].is_number_integer())
    fail(file, cat(file, ": \"", key, "\" must be a whole number, got ", args[key].dump()));
  to = args[key].get<int64_t>();
}
void read(const json& args, const char* key, double& to, const std::string& file) {
  if (!args.contains(key) || args[key].is_null()) return;
  if (!args[key].is_number())
    fail(file, cat(file, ": \"", key, "\" must be a number, got ", args[key].dump()));
  to = args[key].get<double>();
}
void expect_style(const json& args, const char* key, const char* want, const std::string& file) {
  if (args.contains(key) && args[key].is_string() && args[key].get<std::string>() != want)
    fail(file, cat(file, ": \"", key, "\" is ", args[key].dump(), "; this version runs ", want));
}

}  // namespace

ScgptConfig ScgptConfig::from_args(const json& args, const std::string& file) {
  if (!args.is_object()) fail(file, cat(file, ": expected a JSON object of model sizes"));
  ScgptConfig c;
  read(args, "embsize", c.dim, file);
  read(args, "nheads", c.heads, file);
  read(args, "nlayers", c.layers, file);
  read(args, "d_hid", c.ffn, file);
  read(args, "n_layers_cls", c.cls_layers, file);
  read(args, "dropout", c.dropout, file);
  read(args, "n_bins", c.n_bins, file);
  read(args, "pad_value", c.pad_value, file);
  read(args, "mask_value", c.mask_value, file);
  read(args, "max_seq_len", c.max_seq_len, file);
  if (args.contains("pad_token") && args["pad_token"].is_string())
    c.pad_token = args["pad_token"].get<std::string>();
  expect_style(args, "input_emb_style", "continuous", file);
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
  auto positive = [&](int64_t v, const char* what, int64_t most) {
    if (v < 1 || v > most) fail(file, cat(file, ": ", what, " is ", v, "; it must be 1 to ", most));
  };
  positive(vocab, "the vocabulary size", 1 << 24);
  positive(dim, "embsize", 1 << 15);
  positive(heads, "nheads", 1 << 10);
  positive(layers, "nlayers", 1 << 10);
  positive(ffn, "d_hid", 1 << 17);
  positive(cls_layers, "n_layers_cls", 64);
  positive(n_bins, "n_bins", 1 << 15);
  if (dim % heads != 0)
    fail(file, cat(file, ": embsize ", dim, " is not a multiple of nheads ", heads));
  if (!(dropout >= 0 && dropout < 1))
    fail(file, cat(file, ": dropout is ", dropout, "; it must be at least 0 and below 1"));
}

}  // namespace scgraft
