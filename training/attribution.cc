// SPDX-License-Identifier: Apache-2.0
#include "training/attribution.h"

#include <algorithm>
#include <numeric>

#include "io/text.h"
#include "model/gene_files.h"
#include "runtime/error.h"
#include "training/predict.h"

namespace scgraft {
namespace {

// The group of each cell, -1: none.
Categorical groups_of(const H5ad& file, const std::string& by) {
  if (!by.empty()) return as_categorical(file.obs().read(by));
  return {.codes = std::vector<int32_t>(static_cast<size_t>(file.n_obs()), 0),
          .categories = {"all"}};
}

GeneAttention& attention_of(CellModel& model) {
  GeneAttention* attention = model.network().gene_attention();
  if (attention != nullptr) return *attention;
  ConfigError error(
      cat("genes are scored by the attention of scBERT, this model is ", model.title()),
      "E-ATTRIBUTE");
  error.set_hint("--model DIR with the folder of a scBERT checkpoint, or an adapter on one");
  throw error;
}

// Sums over the cells of a file.
class Sums {
 public:
  // token_columns: GeneMatch::token of a file
  Sums(const Categorical& groups, const std::vector<int32_t>& token_columns) : groups_(groups) {
    for (const int32_t token : token_columns) {
      if (token < 0) continue;
      const auto at = static_cast<size_t>(token);
      if (at >= gene_of_.size()) gene_of_.resize(at + 1, -1);
      gene_of_[at] = genes_++;
    }
    cells.resize(groups.categories.size());
    score.resize(cells.size() * static_cast<size_t>(genes_));
    with_gene.resize(score.size());
  }

  // received [tokens of the cell]
  void add(const GeneAttention& attention, const CellView& cell, const float* received) {
    const int32_t group = groups_.codes[static_cast<size_t>(cell.cell)];
    const size_t first = static_cast<size_t>(group) * static_cast<size_t>(genes_);
    ++cells[static_cast<size_t>(group)];
    for (size_t i = 0; i < cell.genes.size(); ++i) {
      const GeneAttention::Gene is = attention.gene(cell.genes[i], cell.values[i]);
      if (is.token < 0 || is.token >= std::ssize(gene_of_)) continue;
      const int32_t gene = gene_of_[static_cast<size_t>(is.token)];
      if (gene < 0) continue;
      score[first + static_cast<size_t>(gene)] += static_cast<double>(received[i]);
      with_gene[first + static_cast<size_t>(gene)] += is.expressed ? 1 : 0;
    }
  }

  std::vector<double> score;       // [groups, genes]
  std::vector<int64_t> with_gene;  // [groups, genes]
  std::vector<int64_t> cells;      // [groups]

 private:
  const Categorical& groups_;
  std::vector<int32_t> gene_of_;  // of a token, in the order of the file's columns; -1: none
  int32_t genes_ = 0;
};

}  // namespace

std::vector<size_t> GeneAttribution::largest(size_t group, int64_t count) const {
  std::vector<size_t> order(genes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const double* of = score.data() + group * genes.size();
  const auto end = order.begin() + std::min<int64_t>(count, std::ssize(order));
  std::partial_sort(order.begin(), end, order.end(),
                    [&](size_t a, size_t b) { return of[a] > of[b] || (of[a] == of[b] && a < b); });
  order.erase(end, order.end());
  return order;
}

GeneAttribution attribute_genes(Context& ctx, const H5ad& file, CellModel& model,
                                const Preparation& preparation, const AttributionOptions& options,
                                const RunEvents& events) {
  GeneAttention& attention = attention_of(model);
  const Categorical groups = groups_of(file, options.by);
  HostContext host(ctx);
  model.backbone().move_to(ctx.device());
  const auto reader = model.reader(host.get(), file, preparation);
  GeneAttribution out;
  out.match = reader->match();
  out.slot = reader->slot();
  Sums sums(groups, out.match.token);
  MicroBatch micro_batch =
      options.chunk_tokens > 0 ? MicroBatch(options.chunk_tokens) : inference_micro_batch(ctx);
  TokenisedCells chunk;
  TokenBatch batch;
  std::vector<CellView> views;
  while (reader->next(chunk, nullptr)) {
    views.clear();
    for (int64_t i = 0; i < chunk.cells(); ++i) {
      const int64_t cell = chunk.first_cell + i;
      if (std::binary_search(chunk.empty.begin(), chunk.empty.end(), cell)) {
        ++out.without_genes;
      } else if (groups.codes[static_cast<size_t>(cell)] < 0) {
        ++out.without_label;
      } else {
        views.push_back(chunk.view(i));
      }
    }
    // What has been added stays when memory is short and the rest begins anew in smaller pieces.
    size_t done = 0;
    micro_batch.fit(ctx, views, [&] {
      const std::span<const CellView> left = std::span<const CellView>(views).subspan(done);
      for_each_chunk(ctx, left, micro_batch.tokens(), batch,
                     [&](const TokenBatch& packed, size_t begin, size_t end) {
                       events.check_stop();
                       Arena::Scope activations(ctx.activations());
                       Tensor received({packed.tokens()}, DType::f32);
                       attention.received(ctx, packed, received.view());
                       const float* from = received.as<float>();
                       for (size_t i = begin; i < end; ++i) {
                         sums.add(attention, left[i], from);
                         from += left[i].genes.size();
                         ++done;
                       }
                     });
    });
    events.tell("attribute", chunk.first_cell + chunk.cells(), reader->cells());
  }

  const std::vector<std::string> names =
      gene_names_of(file, file.slot(out.slot.slot), preparation.gene_key);
  for (size_t i = 0; i < names.size(); ++i)
    if (out.match.token[i] >= 0) out.genes.push_back(names[i]);
  for (size_t group = 0; group < groups.categories.size(); ++group) {
    if (sums.cells[group] == 0) continue;
    out.groups.push_back(groups.categories[group]);
    out.cells.push_back(sums.cells[group]);
    for (size_t i = group * out.genes.size(); i < (group + 1) * out.genes.size(); ++i) {
      out.score.push_back(sums.score[i] / static_cast<double>(sums.cells[group]));
      out.with_gene.push_back(sums.with_gene[i]);
    }
  }
  if (out.groups.empty()) {
    DataError error(cat("no cell of ", escaped(file.path()), " has a gene that the model knows",
                        options.by.empty() ? "" : " and a label in obs/", escaped(options.by)),
                    "E-GROUPS");
    error.set_where(file.path(), options.by.empty() ? "" : "obs/" + options.by);
    error.set_hint("scgraft inspect FILE shows the columns and the genes; name a column with --by");
    throw error;
  }
  return out;
}

}  // namespace scgraft
