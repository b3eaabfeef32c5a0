// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <deque>

#include "adapters/adapter.h"

namespace scgraft {

// Low-rank adaptation of linear projections:  y = W x + b + s B A drop(x),  s = alpha / rank.
// A starts uniform in +-1/sqrt(in) (Kaiming, a = sqrt(5)), B starts at zero.
// Parameters are named as in PEFT: base_model.model.<module path>.lora_A.weight [rank, in] and
// .lora_B.weight [out, rank].
// Source: Hu et al. 2021; file names from Hugging Face PEFT.
class Lora : public Adapter {
 public:
  Lora(const AdapterOptions& options, Backbone& backbone, uint64_t seed);

  std::string_view kind() const override { return "lora"; }
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override;
  void detach(Backbone& backbone) override;
  std::vector<Parameter*> parameters() override { return parameters_.all(); }
  bool merge_into(Backbone& backbone) override;
  void unmerge_from(Backbone& backbone) override;

 private:
  class Site : public LinearSite {
   public:
    std::string name;  // of the backbone's site
    Parameter* a = nullptr;
    Parameter* b = nullptr;
    double scale = 1;
    Dropout dropout;
    Tensor original;  // weight rows before a merge

    std::span<const LowRank> terms(Context& ctx, const Linear& beside, bool training) override;
    bool trainable() const override { return a->trainable() || b->trainable(); }
    void backward(Context& ctx, const Linear& beside, ConstTensorView x, ConstTensorView dy,
                  const Packing& packing) override;

   private:
    LowRank term(bool training) const;
    LowRank term_;
  };

  AdapterOptions options_;
  ParameterSet parameters_;
  std::deque<Site> sites_;
};

std::unique_ptr<Adapter> make_lora(const AdapterOptions& options, Backbone& backbone,
                                   uint64_t seed);

}  // namespace scgraft
