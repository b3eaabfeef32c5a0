// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/config.h"

#include <nlohmann/json.hpp>

#include "model/model_sizes.h"
#include "runtime/error.h"

namespace scgraft {

using nlohmann::json;

namespace {

template <class T>
struct Named {
  const char* name;
  T value;
};
constexpr Named<ValueStyle> kValueStyles[] = {{"continuous", ValueStyle::continuous},
                                              {"category", ValueStyle::category},
                                              {"scaling", ValueStyle::scaling}};
constexpr Named<Pooling> kCellStyles[] = {
    {"cls", Pooling::cls}, {"avg-pool", Pooling::mean}, {"w-pool", Pooling::weighted}};
constexpr Named<MvcStyle> kMvcStyles[] = {{"inner product", MvcStyle::inner_product},
                                          {"concat query", MvcStyle::concat_query},
                                          {"sum query", MvcStyle::sum_query}};

// The style of a key; where it is missing or null, `to` stays as it is.
template <class T, size_t kCount>
void read_style(const json& args, const ModelSizes& sizes, const char* key,
                const Named<T> (&styles)[kCount], T& to) {
  if (!args.contains(key) || args[key].is_null()) return;
  std::string known;
  for (const Named<T>& style : styles) {
    if (args[key] == style.name) {
      to = style.value;
      return;
    }
    known += cat(known.empty() ? "" : ", ", style.name);
  }
  sizes.fail(cat("\"", key, "\" is ", args[key].dump(), "; this version knows ", known));
}

template <class T, size_t kCount>
const char* name_of(const Named<T> (&styles)[kCount], T value) {
  for (const Named<T>& style : styles)
    if (style.value == value) return style.name;
  throw Error("a style without a name");
}

}  // namespace

ScgptConfig ScgptConfig::from_args(const json& args, const std::string& file) {
  const ModelSizes sizes(args, file);
  ScgptConfig c;
  sizes.read("embsize", c.dim);
  sizes.read("nheads", c.heads);
  sizes.read("nlayers", c.layers);
  sizes.read("d_hid", c.ffn);
  sizes.read("n_layers_cls", c.cls_layers);
  sizes.read("dropout", c.dropout);
  sizes.read("pre_norm", c.pre_norm);
  if (c.pre_norm) sizes.read("fast_transformer", c.pre_norm);
  sizes.read("n_bins", c.n_bins);
  sizes.read("pad_value", c.pad_value);
  sizes.read("mask_value", c.mask_value);
  sizes.read("max_seq_len", c.max_seq_len);
  if (args.contains("pad_token") && args["pad_token"].is_string())
    c.pad_token = args["pad_token"].get<std::string>();
  read_style(args, sizes, "input_emb_style", kValueStyles, c.value_style);
  sizes.read("pert_pad_id", c.flag_pad);
  c.cell_style = usual_cell_style(c.value_style);
  read_style(args, sizes, "cell_emb_style", kCellStyles, c.cell_style);
  read_style(args, sizes, "mvc_decoder_style", kMvcStyles, c.mvc_style);
  return c;
}

json ScgptConfig::to_args() const {
  json args = {{"embsize", dim},
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
               {"input_emb_style", name_of(kValueStyles, value_style)},
               {"cell_emb_style", name_of(kCellStyles, cell_style)},
               {"mvc_decoder_style", name_of(kMvcStyles, mvc_style)},
               {"MVC", true},
               {"no_cls", true}};
  if (flags > 0) args["pert_pad_id"] = flag_pad;
  if (pre_norm) args["pre_norm"] = true;
  return args;
}

Pooling ScgptConfig::usual_cell_style(ValueStyle values) {
  switch (values) {
    case ValueStyle::category:
      return Pooling::mean;
    case ValueStyle::scaling:
      return Pooling::weighted;
    case ValueStyle::continuous:
      break;
  }
  return Pooling::cls;
}

bool ScgptConfig::plain() const {
  return value_style == ValueStyle::continuous && cell_style == Pooling::cls &&
         mvc_style == MvcStyle::inner_product && flags == 0 && batches == 0 && !batch_norm &&
         domains == 0 && adversary_layers == 0;
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
