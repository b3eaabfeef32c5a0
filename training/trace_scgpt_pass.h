// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "model/scgpt/network.h"
#include "training/trace_scgpt_case.h"

namespace scgraft {

// The losses whose gradient is wanted.
struct ScgptLosses {
  bool expression = false;   // masked MSE of the decoders
  bool zeros = false;        // whether a masked gene is expressed
  bool similarity = false;   // 10 ECS
  bool contrastive = false;  // 10 CCE
  bool classes = false;      // cross entropy of the classes,
  bool weighted = false;     // by class weights
  bool adversary = false;    // cross entropy of the batches, reversed below the head

  bool any() const {
    return expression || zeros || similarity || contrastive || classes || adversary;
  }
};

// One pass of a network over one batch.
class ScgptPass {
 public:
  struct Options {
    std::string prefix = {};     // before the names of activations
    bool batch_moments = false;  // batch norms as in training
    bool losses = true;          // are told
    ScgptLosses gradient = {};
  };
  // All of it outlives this; results go to `out`.
  ScgptPass(Context& ctx, ScgptNetwork& net, const ScgptCase& inputs, const Options& options,
            TraceArrays& out);

  // Throws DataError for inputs that do not fit the model.
  void run();

 private:
  TensorView take(Shape shape) { return ctx_.activations().take(shape, DType::f32); }
  TensorView zeros(Shape shape);
  void tell(const std::string& name, Tensor array);
  // A loss of the heads; they are summed up in loss_total.
  void tell_loss(const std::string& name, double value);
  bool has_targets() const { return !batch_.targets().empty() && batch_.targets().numel() > 0; }

  void pool_cells();
  void pool_backward();
  void read_heads_input();
  // One function per head; what flows back from it is added to dtokens_, dcells_ or dcell_.
  void expression();
  void affine();
  void genes_of_cells();
  void genes_by_query();
  void similarity();
  void classes();
  void adversary();
  // y [tokens], its masked MSE as loss_<name>, and its gradient in place of y.
  void masked_error(const std::string& name, TensorView y);
  // Logits of a gene being expressed [tokens]: probabilities as out_<name>_zero_probs, the loss as
  // `loss`, and the gradient in place of the logits. False when there is nothing to compare with.
  bool expressed(const std::string& name, const std::string& loss, TensorView logits);
  // Cross entropy of the classes with or without class weights.
  double classification(ConstTensorView logits, bool weighted, TensorView dlogits);

  Context& ctx_;
  ScgptNetwork& net_;
  const ScgptCase& case_;
  Options options_;
  TraceArrays& out_;
  TokenBatch batch_;
  Tensor class_weight_;   // on the device; [0] when there is none
  Tensor expressed_;      // labels of the masked tokens, for expressed()
  double mse_scale_ = 0;  // 1 / masked tokens
  double total_ = 0;
  TensorView x_, cell_;   // [tokens, dim], [cells, dim]
  TensorView cell_norm_;  // of w-pool
  ConstTensorView tokens_,
      cells_;                    // what heads of genes read: x and cell, or with the batch beside
  TensorView dtokens_, dcells_;  // gradients by those
  TensorView dcell_;             // more, by the cell alone
};

}  // namespace scgraft
