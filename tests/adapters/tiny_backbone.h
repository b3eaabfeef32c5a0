// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "io/sha256.h"
#include "model/geneformer/network.h"
#include "model/scfoundation/network.h"
#include "model/scgpt/network.h"
#include "tests/model/tiny_scbert.h"
#include "tests/model/tiny_scfoundation.h"
#include "tests/testing/op_test.h"

namespace scgraft {

// An scGPT network of two layers and width 16 with random weights.
inline std::unique_ptr<ScgptNetwork> tiny_network(uint64_t seed = 1, int64_t classes = 3,
                                                  int64_t dim = 16, DType dtype = DType::f32,
                                                  bool pre_norm = false) {
  ScgptConfig config;
  config.pre_norm = pre_norm;
  config.vocab = 20;
  config.dim = dim;
  config.heads = 4;
  config.layers = 2;
  config.ffn = 24;
  config.dropout = 0;
  return std::make_unique<ScgptNetwork>(
      config, ScgptNetwork::Heads{.decoder = false, .mvc = false, .classes = classes},
      scgpt_initialiser(seed, dtype));
}

// A Geneformer network of the same size.
inline std::unique_ptr<GeneformerNetwork> tiny_geneformer(uint64_t seed = 1,
                                                          DType dtype = DType::f32) {
  GeneformerConfig config;
  config.vocab = 20;
  config.dim = 16;
  config.heads = 4;
  config.layers = 2;
  config.ffn = 24;
  config.positions = 16;
  config.dropout = config.attention_dropout = 0;
  return std::make_unique<GeneformerNetwork>(config, GeneformerNetwork::Heads{.words = false},
                                             geneformer_initialiser(seed, dtype));
}

// An scBERT network of the same size.
inline std::unique_ptr<ScbertNetwork> tiny_scbert(uint64_t seed = 1, DType dtype = DType::f32) {
  ScbertConfig config = tiny_scbert_config(8);
  config.tokens = 20;
  return std::make_unique<ScbertNetwork>(config, 12, ScbertNetwork::Heads{.bins = false},
                                         tiny_scbert_values(seed, dtype));
}

// A scFoundation network of the same size, without the decoder.
inline std::unique_ptr<ScfoundationNetwork> tiny_scfoundation(uint64_t seed = 1,
                                                              DType dtype = DType::f32) {
  ScfoundationConfig config = tiny_scfoundation_config();
  config.positions = 20;
  config.dim = 16;
  config.heads = 4;
  config.dropout = 0;
  return std::make_unique<ScfoundationNetwork>(config, 0, random_scfoundation(seed, dtype));
}

// Three cells of different lengths, whose values pass for ranks too.
class TinyBatch {
 public:
  // ctx: whose device the batch is for; null: the host.
  explicit TinyBatch(Context* ctx = nullptr) {
    const std::vector<std::vector<int32_t>> genes = {{0, 3, 7, 9}, {0, 5}, {0, 19, 3, 4, 11, 7}};
    std::vector<CellView> views;
    for (const auto& ids : genes) {
      auto& cell = cells_.emplace_back();
      cell.genes = ids;
      for (size_t i = 0; i < ids.size(); ++i)
        cell.values.push_back(static_cast<float>((ids[i] * 7 + static_cast<int>(i)) % 5));
      views.push_back({.cell = static_cast<int64_t>(cells_.size()) - 1,
                       .genes = {},
                       .values = {},
                       .targets = {},
                       .masked = {},
                       .label = -1});
    }
    for (size_t i = 0; i < views.size(); ++i) {
      views[i].genes = cells_[i].genes;
      views[i].values = cells_[i].values;
    }
    if (ctx == nullptr)
      batch_.assign(views);
    else
      batch_.assign(*ctx, views);
  }
  const TokenBatch& batch() const { return batch_; }

 private:
  struct Cell {
    std::vector<int32_t> genes;
    std::vector<float> values;
  };
  std::vector<Cell> cells_;
  TokenBatch batch_;
};

// Rows of every token [tokens, dim].
inline Tensor encoded(Backbone& network, const TokenBatch& batch) {
  Context ctx;
  Tensor out({batch.tokens(), network.dim()}, DType::f32);
  network.encode(ctx, batch, {}, out.view());
  return out;
}

// Steps of plain gradient descent on  sum(weight * output), whatever is trainable.
inline void descend(Backbone& network, const TokenBatch& batch,
                    const std::vector<Parameter*>& parameters, int steps, double rate) {
  Context ctx;
  for (int step = 0; step < steps; ++step) {
    Arena::Scope scope(ctx.activations());
    ctx.random() = {.seed = 5, .step = static_cast<uint32_t>(step)};
    Tensor out({batch.tokens(), network.dim()}, DType::f32);
    const EncodeOptions options{
        .training = true, .save = true, .rows = LayerRows::all, .tap = nullptr};
    network.encode(ctx, batch, options, out.view());
    Tensor dout(out.shape(), DType::f32);
    for (int64_t i = 0; i < dout.numel(); ++i)
      dout.as<float>()[i] = std::sin(static_cast<float>(i + step));
    network.encode_backward(ctx, batch, options, dout.view());
    for (Parameter* p : parameters)
      for (int64_t i = 0; i < p->value.numel(); ++i) {
        p->value.as<float>()[i] -= static_cast<float>(rate) * p->grad.as<float>()[i];
        p->grad.as<float>()[i] = 0;
      }
    network.parameters_updated();
  }
}

inline std::string fingerprint(Backbone& network) {
  Sha256 digest;
  for (const Parameter* p : network.parameters().all()) {
    digest.update(p->name);
    digest.update(std::span(static_cast<const std::byte*>(p->value.view().data()),
                            static_cast<size_t>(p->value.nbytes())));
  }
  return digest.finish();
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.view().data(), b.view().data(), static_cast<size_t>(a.nbytes())) == 0;
}

}  // namespace scgraft
