// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "adapters/projection_adapter.h"

namespace scgraft {

// Orthogonal fine-tuning: a frozen projection of which the input is turned, block by block,
//
//   y = x W'^T + b,   W' = W blockdiag(Q_1 ... Q_m)^T,   Q_b = (I - S_b) (I + S_b)^-1
//
// with skew-symmetric S_b (kernels/rotation.h). W' is made again after every step and multiplied
// with in place of W, so that a forward pass costs what it costs without the adapter; in 16-bit
// products W' is rounded as a merged weight is. The backward pass forms the gradient of W', as for
// a trained weight, and goes on from there to that of S_b. Fresh, S_b = 0: the identity. Parameters
// are named as in PEFT: base_model.model.<module path>.oft_R.weight [m, n (n - 1) / 2], what is
// above the diagonal of each S_b, row by row.
//
//   blocks, block_size   m of every projection; or, with block_size > 0, the width n of a block.
//                        Their product must be the width of the input, n at most kRotationSize
//   constraint c > 0     after every step |S_b| (Frobenius norm) is scaled down to c / sqrt(m)
//                        where it is more (PEFT: coft, eps; scPEFT has c = 1e-5 n^2)
//
// The gradient by S_b is formed in every call of backward: a step that is cut into other chunks of
// cells gives the same sums, but not to the last bit.
// Source: Qiu et al. 2023 (OFT, COFT); file names and options from Hugging Face PEFT, of which this
// is the exact transform (use_cayley_neumann false).
class Oft : public ProjectionAdapter {
 public:
  Oft(const AdapterOptions& options, Backbone& backbone);

  std::string_view kind() const override { return "oft"; }

 private:
  class OftSite : public Site {
   public:
    Parameter* skew = nullptr;
    int64_t blocks = 1, size = 1;
    double radius = 0;  // of |S_b|; 0: none

    std::span<const LowRank> terms(Context&, const Linear&, bool) override { return {}; }
    bool replaces_weight() const override { return true; }
    ConstTensorView weight(Context& ctx, const Linear& beside) override;
    Tensor merged(const Tensor& rows) const override;
    bool trainable() const override { return skew->trainable(); }
    // Throws Error when the weight of the projection is trained too.
    void backward(Context& ctx, const Linear& beside, ConstTensorView x, ConstTensorView dy,
                  const Packing& packing) override;
    void parameters_updated() override { stale_ = true; }

   private:
    bool stale_ = true;
    Tensor q_, turned_;  // [blocks, size, size], [out, in]
  };
};

std::unique_ptr<Adapter> make_oft(const AdapterOptions& options, Backbone& backbone, uint64_t seed);

}  // namespace scgraft
