// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "model/linear.h"
#include "model/norm.h"
#include "model/parameter.h"
#include "model/sites.h"

namespace scgraft {

// A bottleneck in the way of rows, what encoder and token adapters are made of:
//
//   y = [n +] scale * (W2 gelu(W1 n + b1) + b2)      W1 [width, dim], W2 [dim, width]
//
// with n = x, or a layer norm of x of its own. With the skip (n +) the scale is 1. Parameters are
// <name>.fc1.weight, .fc1.bias, .fc2.weight and .fc2.bias, and <name>.norm.weight and .norm.bias.
// Source: Houlsby et al. 2019; sizes and places are those of scPEFT.
class Bottleneck : public HiddenSite {
 public:
  struct Shape {
    int64_t dim = 0;
    int64_t width = 0;
    bool skip = true;
    double scale = 1;
    bool norm = false;  // a layer norm in front, eps 1e-5
  };
  // What fresh values are.
  enum class Start {
    identity,  // W2 = b2 = 0: y = x, or 0 without the skip; W1, b1 as below
    uniform,   // all four uniform in +-1/sqrt(fan in), as torch.nn.Linear; so does scPEFT
  };
  // Its parameters are added to `parameters`, of the type and on the device of `like`.
  Bottleneck(ParameterSet& parameters, const std::string& name, Shape shape, Start start,
             const Tensor& like, uint64_t seed);

  void forward(Context& ctx, ConstTensorView x, const Packing& rows, bool save,
               TensorView y) override;
  bool trainable() const override {
    return fc1_.trainable() || fc2_.trainable() || (norm_ && norm_->trainable());
  }
  void backward(Context& ctx, ConstTensorView dy, const Packing& rows, TensorView dx) override;
  void parameters_updated() override;

 private:
  void use_type(DType product);

  Shape shape_;
  Linear fc1_, fc2_;
  DType product_ = DType::f32;
  std::optional<LayerNorm> norm_;
  ConstTensorView n_, pre_;  // of the saved pass; pre_ before gelu
  LayerNorm::Saved norm_saved_;
};

}  // namespace scgraft
