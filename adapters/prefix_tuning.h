// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <deque>
#include <string_view>
#include <vector>

#include "adapters/adapter.h"

namespace scgraft {

// Prefix-tuning: trained keys and values in front of those of every cell, of their own in each
// layer (KeyValueSite in model/sites.h). No query, no feed-forward part and no norm is computed for
// them, which is what tells them from the rows of Prefix. Parameters are <layer path>.prefix_keys
// and .prefix_values, both [tokens, dim] with dim the width of all heads (Backbone::key_width());
// tokens is at most kPrefixRows. In the linear attention of a Performer they take part in the sums
// over a cell's keys.
//
// Keys start uniform with a standard deviation of 0.02, values at zero. That is no identity: the
// share of the attention that goes to them, about tokens / (tokens + length of the cell), is taken
// from the tokens of the cell.
//
// Where every layer has them, an adapter directory holds what PEFT's PREFIX_TUNING does: one tensor
// prompt_embeddings [tokens, layers * 2 * dim], of which the columns from 2 l dim on are the keys
// of layer l, and those from (2 l + 1) dim on its values. In other layers it is a kind of ours. As
// under PEFT, tokens of a Geneformer backbone move `tokens` positions on when the first layer has
// them (model/geneformer/network.h).
// Source: Li and Liang 2021; file layout from Hugging Face PEFT.
class PrefixTuning : public Adapter {
 public:
  // Throws ConfigError when options do not fit.
  PrefixTuning(const AdapterOptions& options, Backbone& backbone, uint64_t seed);

  std::string_view kind() const override { return "prefix_tuning"; }
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override;
  void detach(Backbone& backbone) override;
  std::vector<Parameter*> parameters() override { return parameters_.all(); }
  bool merge_into(Backbone&) override { return false; }  // no weight does what keys do
  void unmerge_from(Backbone&) override;

 private:
  struct Site : KeyValueSite {
    int layer = 0;
    Parameter* k = nullptr;
    Parameter* v = nullptr;
    AttentionPrefix rows() const override {
      return {.k = std::as_const(k->value).view(), .v = std::as_const(v->value).view()};
    }
    bool trainable() const override { return k->trainable(); }
    AttentionPrefixGradient gradient() override {
      return {.k = k->grad.view(), .v = v->grad.view()};
    }
  };
  AdapterOptions options_;
  ParameterSet parameters_;
  std::deque<Site> sites_;
};

// The name of PEFT's tensor, and the way from the parameters of an adapter to it and back.
inline constexpr std::string_view kPromptEmbeddings = "prompt_embeddings";
Tensor prompt_embeddings(const std::vector<Parameter*>& parameters);
// flat: as prompt_embeddings() gives it, in host memory.
void set_prompt_embeddings(const Tensor& flat, const std::vector<Parameter*>& parameters);

std::unique_ptr<Adapter> make_prefix_tuning(const AdapterOptions& options, Backbone& backbone,
                                            uint64_t seed);

}  // namespace scgraft
