// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "adapters/projection_adapter.h"

namespace scgraft {

// Low-rank adaptation of linear projections:  y = W x + b + s B A drop(x),  s = alpha / rank.
// A starts uniform in +-1/sqrt(in) (Kaiming, a = sqrt(5)), B starts at zero.
// Parameters are named as in PEFT: base_model.model.<module path>.lora_A.weight [rank, in] and
// .lora_B.weight [out, rank].
// Source: Hu et al. 2021; file names from Hugging Face PEFT.
class Lora : public ProjectionAdapter {
 public:
  Lora(const AdapterOptions& options, Backbone& backbone, uint64_t seed);

  std::string_view kind() const override { return "lora"; }

 private:
  class LoraSite : public Site {
   public:
    Parameter* a = nullptr;
    Parameter* b = nullptr;
    double scale = 1;
    Dropout dropout;

    std::span<const LowRank> terms(Context& ctx, const Linear& beside, bool training) override;
    Tensor merged(const Tensor& rows) const override;
    bool trainable() const override { return a->trainable() || b->trainable(); }
    void backward(Context& ctx, const Linear& beside, ConstTensorView x, ConstTensorView dy,
                  const Packing& packing) override;

   private:
    LowRank term(bool training) const;
    LowRank term_;
  };
};

std::unique_ptr<Adapter> make_lora(const AdapterOptions& options, Backbone& backbone,
                                   uint64_t seed);

}  // namespace scgraft
