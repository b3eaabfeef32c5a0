// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "adapters/projection_adapter.h"

namespace scgraft {

// Householder reflection adaptation: a frozen projection whose weight is turned,
//
//   y = x W'^T + b,   W' = W H_1 ... H_r,   H_i = I - 2 n_i n_i^T,   n_i = u[:, i] / |u[:, i]|
//
// computed as a low-rank term beside it, W' = W - (W p^T) a (kernels/reflections.h), for which p
// and W p^T are made again after every step. r is even: fresh, u is half as many columns, uniform
// in +-1/sqrt(r/2), each of them twice, and neighbours undo each other. Parameters are named as in
// PEFT: base_model.model.<module path>.hra_u [in, r].
//
// The gradient by u is formed in every call of backward: a step that is cut into other chunks of
// cells gives the same sums, but not to the last bit.
// Source: Yuan et al. 2024 (HRA); file names and start from Hugging Face PEFT.
class Hra : public ProjectionAdapter {
 public:
  Hra(const AdapterOptions& options, Backbone& backbone, uint64_t seed);

  std::string_view kind() const override { return "hra"; }

 private:
  class HraSite : public Site {
   public:
    Parameter* u = nullptr;

    std::span<const LowRank> terms(Context& ctx, const Linear& beside, bool training) override;
    Tensor merged(const Tensor& rows) const override;
    bool trainable() const override { return u->trainable(); }
    // Throws Error when the weight of the projection is trained too.
    void backward(Context& ctx, const Linear& beside, ConstTensorView x, ConstTensorView dy,
                  const Packing& packing) override;
    void parameters_updated() override { stale_ = true; }

   private:
    // Memory of the terms, on the device of u.
    void make_room(Context& ctx, const Linear& beside);

    bool stale_ = true;
    Tensor a_, p_, b_;  // [r, in], [r, in], [out, r]
    PackedWeight packed_p_;
    std::optional<RowList> rows_;  // of the weight, as one cell
    DevicePacking rows_packing_;
    LowRank term_;
  };
};

std::unique_ptr<Adapter> make_hra(const AdapterOptions& options, Backbone& backbone, uint64_t seed);

}  // namespace scgraft
