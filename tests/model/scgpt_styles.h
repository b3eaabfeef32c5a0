// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "kernels/add.h"
#include "model/scgpt/network.h"
#include "runtime/random.h"
#include "tests/testing/op_test.h"

namespace scgraft {

// A tiny network of a style, and how it is run.
struct ScgptStyle {
  std::string name;
  ScgptConfig config;
  ScgptNetwork::Heads heads;
  bool batch_moments = false;
};

inline std::vector<ScgptStyle> scgpt_styles() {
  const ScgptConfig tiny{.vocab = 9,
                         .dim = 4,
                         .heads = 2,
                         .layers = 1,
                         .ffn = 6,
                         .cls_layers = 2,
                         .dropout = 0,
                         .adversary_layers = 0};
  ScgptConfig category = tiny, scaling = tiny, perturbation = tiny, integration = tiny;
  category.value_style = ValueStyle::category;
  category.categories = 6;
  category.mvc_style = MvcStyle::sum_query;
  scaling.value_style = ValueStyle::scaling;
  scaling.batch_norm = true;
  scaling.mvc_style = MvcStyle::concat_query;
  perturbation.flags = 3;
  perturbation.flag_pad = 2;
  integration.domains = 2;
  integration.domain_affine = true;
  integration.batches = 3;
  integration.adversary_layers = 3;
  return {{"category", category, {}},
          {"scaling", scaling, {}, true},
          {"scaling_evaluated", scaling, {.mvc = false}},
          {"perturbation", perturbation, {.mvc = false}},
          {"integration", integration, {.classes = 3, .zeros = true, .adversary = 3}, true}};
}

// Three cells. Values 3 and 3.5 are one category.
struct StyledCells {
  std::vector<std::vector<int32_t>> genes = {{0, 3, 5, 7}, {0, 5}, {0, 1, 2, 3, 8}};
  std::vector<std::vector<float>> values = {{0, 3, 1, 3.5f}, {0, 5}, {0, 3, 2, 2, 4}};
  std::vector<int32_t> flags = {0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0};
  std::vector<int32_t> batches = {2, 0, 2};

  std::vector<CellView> views() const {
    std::vector<CellView> all;
    for (size_t c = 0; c < genes.size(); ++c)
      all.push_back({.cell = static_cast<int64_t>(c), .genes = genes[c], .values = values[c]});
    return all;
  }
};

// Sum of random multiples of everything that the network computes of those cells: rows of tokens
// and what each of its heads makes of them. With `learn` its gradients are accumulated.
inline double styled_loss(Context& ctx, ScgptNetwork& net, const ScgptStyle& style, DType type,
                          bool learn) {
  const StyledCells cells;
  TokenBatch batch;
  batch.assign(ctx, cells.views());
  Arena::Scope scope(ctx.activations());
  const int64_t n = batch.tokens();
  const auto take = [&](Shape shape) { return ctx.activations().take(shape, type); };
  std::deque<Tensor> kept;
  double total = 0;
  // Adds a multiple of y to the loss; returns the gradient by y.
  const auto term = [&](ConstTensorView y) {
    Tensor host(y.shape(), type), w(y.shape(), type);
    copy(y, host.view());
    RandomStream random(3, RandomUse::simulate, static_cast<uint32_t>(kept.size()));
    visit_real(type, [&]<class T>(Type<T>) {
      for (int64_t i = 0; i < w.numel(); ++i) w.as<T>()[i] = static_cast<T>(random.normal());
    });
    total += dot(host.view(), w.view());
    kept.push_back(w.to(ctx.device()));
    return kept.back().view();
  };

  const EncodeOptions encode{.save = true,
                             .flags = cells.flags,
                             .batches = cells.batches,
                             .domain = 1,
                             .batch_moments = style.batch_moments};
  const TensorView x = take({n, net.dim()});
  net.encode(ctx, batch, encode, x);
  const TensorView cell = take({batch.cells(), net.dim()});
  pool(ctx, Pooling::cls, x, {}, batch.packing(), cell);
  const TensorView dx = take(x.shape()), dcell = take(cell.shape());
  copy(ctx, term(x), dx);
  copy(ctx, term(cell), dcell);

  ConstTensorView tokens = x, cells_of = cell;
  if (BatchEncoder* batches = net.batch_encoder()) {
    tokens = batches->beside_tokens(ctx, batch, x);
    cells_of = batches->beside_cells(ctx, batch, cell);
  }
  const TensorView dtokens = take(tokens.shape()), dcells = take(cells_of.shape());
  const TensorView more_tokens = take(tokens.shape()), more_cells = take(cells_of.shape());
  const TensorView more_cell = take(cell.shape()), dgene = take(net.gene_rows().shape());
  set_zero(ctx, dtokens);
  set_zero(ctx, dcells);
  const TensorView y = take({n, 1}), zero = take({n});
  for (ExpressionDecoder* head : {net.decoder(), net.zero_decoder()}) {
    if (head == nullptr) continue;
    ExpressionDecoder::Saved saved;
    head->forward(ctx, tokens, batch.packing(), y, &saved);
    const ConstTensorView dy = term(y);
    if (!learn) continue;
    head->backward(ctx, saved, dy, batch.packing(), more_tokens);
    add(ctx, dtokens, more_tokens, dtokens);
  }
  if (AffineDecoder* head = net.affine_decoder()) {
    AffineDecoder::Saved saved;
    head->forward(ctx, tokens, batch.values(), batch.packing(), y, saved);
    const ConstTensorView dy = term(y);
    if (learn) {
      head->backward(ctx, saved, dy, batch.values(), batch.packing(), more_tokens);
      add(ctx, dtokens, more_tokens, dtokens);
    }
  }
  if (MvcDecoder* head = net.mvc()) {
    MvcDecoder::Saved saved;
    head->forward(ctx, net.gene_rows(), cells_of, batch, y.reshape({n}), &saved,
                  head->w_zero ? zero : TensorView());
    const ConstTensorView dy = term(y.reshape({n}));
    ConstTensorView dzero;
    if (head->w_zero) dzero = term(zero);
    if (learn) {
      head->backward(ctx, saved, dy, batch, more_cells, dgene, dzero);
      add(ctx, dcells, more_cells, dcells);
      net.add_gene_gradient(ctx, dgene);
    }
  }
  if (QueryMvc* head = net.query_mvc()) {
    QueryMvc::Saved saved;
    head->forward(ctx, net.gene_rows(), cell, batch, y, saved);
    const ConstTensorView dy = term(y);
    if (learn) {
      head->backward(ctx, saved, dy, batch, more_cell, dgene);
      add(ctx, dcell, more_cell, dcell);
      net.add_gene_gradient(ctx, dgene);
    }
  }
  for (Classifier* head : {net.classifier(), net.adversary()}) {
    if (head == nullptr) continue;
    const TensorView logits = take({batch.cells(), head->classes()});
    Classifier::Saved saved;
    head->forward(ctx, cell, batch.cell_rows(), logits, &saved);
    const ConstTensorView dlogits = term(logits);
    if (!learn) continue;
    head->backward(ctx, saved, dlogits, batch.cell_rows(), more_cell);
    add(ctx, dcell, more_cell, dcell);
  }
  if (!learn) return total;
  if (BatchEncoder* batches = net.batch_encoder()) {
    const TensorView below = take(x.shape());
    batches->backward(ctx, batch, dtokens, below, dcells, more_cell);
    add(ctx, dx, below, dx);
    add(ctx, dcell, more_cell, dcell);
  } else {
    add(ctx, dx, dtokens, dx);
    add(ctx, dcell, dcells, dcell);
  }
  const TensorView first = take(x.shape());
  pool_backward(ctx, Pooling::cls, dcell, {}, batch.packing(), first);
  add(ctx, dx, first, dx);
  net.encode_backward(ctx, batch, encode, dx);
  ctx.synchronize();
  return total;
}

}  // namespace scgraft
