// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <vector>

#include "model/backbone.h"
#include "model/batch_norm.h"
#include "model/row_scale.h"
#include "model/scgpt/gene_rows.h"
#include "model/scgpt/value_rows.h"

namespace scgraft {

// Everything of scGPT before its layers, for a token of a gene with a value v and a perturbation
// flag p:
//
//   g = LN(E[gene])
//   x = g + drop(u(v))   continuous values (value_rows.h)
//   x = g + u(v)         categories
//   x = v g              scaling
//   x = x + P[p]         perturbation networks
//   x = BN(x)            batch norm, of the whole data or of the domain that the batch is of
//
// What is attached at the site "tokens" is in the way of u, behind its norm and before its dropout.
class ScgptFront {
 public:
  // buffers: what batch norms collect, which is no parameter. dropout: coordinates of the value
  // dropout, and its probability in training.
  ScgptFront(const ScgptConfig& config, Dropout dropout, const ParameterMaker& make,
             const ParameterMaker& buffers);

  GeneRows& genes() { return genes_; }
  DType dtype() const { return genes_.dtype(); }
  bool trainable() const;
  HiddenSite*& token_site() { return token_site_; }
  std::vector<Linear*> linears();
  std::vector<LayerNorm*> norms();

  // -> x [tokens, dim] in the type of the layers, overwritten. Throws DataError (E-TOKEN-FLAG,
  // E-VALUE-CATEGORY, E-BATCH-LABEL) for a flag, value or domain that the model does not have.
  void forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options, TensorView x);
  void backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                ConstTensorView dx);

 private:
  bool token_site_trainable() const { return token_site_ != nullptr && token_site_->trainable(); }
  Dropout dropout(bool training) const;
  // x = g + drop(u), or v g.
  void add_values(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                  ConstTensorView gene, TensorView x);
  void add_flags(Context& ctx, const TokenBatch& batch, const EncodeOptions& options, TensorView x);
  BatchNorm* batch_norm(int32_t domain);
  void gene_backward(Context& ctx, const TokenBatch& batch, ConstTensorView dx);
  void value_backward(Context& ctx, const TokenBatch& batch, bool training, ConstTensorView dx);
  // A tapped array in f32, whatever the layers compute in.
  void tell(Context& ctx, const EncodeOptions& options, const char* name, ConstTensorView view);

  ScgptConfig config_;
  Dropout dropout_;
  GeneRows genes_;
  std::unique_ptr<ValueRows> values_;  // null: scaling
  HiddenSite* token_site_ = nullptr;
  Parameter* flag_table_ = nullptr;  // null: no flags
  RowIndex flags_;
  RowScale scale_;
  std::vector<BatchNorm> batch_norms_;  // one, or one per domain
  BatchNorm* used_ = nullptr;           // of the last forward()
  BatchNorm::Saved saved_;
};

}  // namespace scgraft
