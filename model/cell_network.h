// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>
#include <vector>

#include "model/backbone.h"
#include "model/gene_attention.h"

namespace scgraft {

// A backbone and what is made of its rows for a whole cell: class scores, and an embedding. Which
// rows these are, of which layer, is the model's own.
//
// Activations are taken from ctx.activations(), which the caller rewinds. One saved pass at a time.
class CellNetwork {
 public:
  virtual ~CellNetwork() = default;

  virtual Backbone& backbone() = 0;
  // Of the head; 0: there is none, and logits cannot be asked for.
  virtual int64_t classes() const = 0;
  virtual std::vector<Parameter*> head_parameters() = 0;
  // Numbers of an embedding.
  virtual int64_t embedding_dim() { return backbone().dim(); }
  // Whether embeddings are scaled to unit length before they are used.
  virtual bool unit_embeddings() const = 0;

  // logits [cells, classes] f32, overwritten. save: what backward() reads is kept.
  virtual void forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
                       TensorView logits) = 0;
  // After a forward() with `save`: accumulates the gradients of everything trainable. dlogits
  // [cells, classes] is consumed.
  virtual void backward(Context& ctx, const TokenBatch& batch, bool training,
                        TensorView dlogits) = 0;
  // Without gradients or dropout. Both on the device of the context and overwritten; empty: not
  // wanted.
  //   embedding  [cells, embedding_dim()]  f32
  //   logits     [cells, classes]          f32
  virtual void infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
                     TensorView logits) = 0;
  // Null: this network does not tell what genes receive. Valid as long as the network.
  virtual GeneAttention* gene_attention() { return nullptr; }
};

}  // namespace scgraft
