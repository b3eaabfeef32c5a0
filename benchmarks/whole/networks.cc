// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "benchmarks/whole/whole.h"
#include "model/geneformer/cells.h"
#include "model/scbert/cells.h"
#include "model/scfoundation/cells.h"
#include "runtime/random.h"

namespace scgraft::whole {
namespace {

double bound_of(const std::string& name) {
  if (name.ends_with("projection_matrix")) return 1.7;
  return name.find("_emb.") != std::string::npos ? 1.0 : 0.04;
}

// Weights of a plausible size, a function of (seed, name). The random features of FAVOR+ have
// variance 1. Rows of tables are large beside what layers add: were the rows of a cell alike, or
// queries and keys so large that features are the constant in them, gradients of queries would be
// rounding.
ParameterSource random_weights(uint64_t seed) {
  return [seed](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, DType::f32), {}};
    if (name.find("norm") != std::string::npos)
      fill(p, name.ends_with(".weight") ? 1.0 : 0.0);
    else
      initialise_uniform(p, bound_of(name), seed);
    return std::move(p.value);
  };
}

template <class Network, class Cells, class... More>
void hold(Grafted& out, std::unique_ptr<Network> network, More... more) {
  out.network = std::make_unique<Cells>(*network, more...);
  out.backbone = std::move(network);
}

void geneformer(Grafted& out, const nlohmann::json& sizes) {
  GeneformerConfig config;  // V1-12L
  config.dim = 512;
  config.heads = 8;
  config.layers = 12;
  config.ffn = 1024;
  if (sizes.value("tiny", false)) config.vocab = 3000, config.dim = 64, config.layers = 2;
  config.dropout = config.attention_dropout = 0;
  out.work = {config.layers, config.dim, config.dim, config.ffn};
  hold<GeneformerNetwork, GeneformerCells>(
      out,
      std::make_unique<GeneformerNetwork>(
          config, GeneformerNetwork::Heads{.words = false, .pooler = true, .classes = kClasses},
          geneformer_initialiser(1)),
      CellEmbedding::standard, false);
}

void scbert(Grafted& out, const nlohmann::json& sizes) {
  ScbertConfig config;
  config.positions = sizes.at("length");
  int64_t features = 266;
  if (sizes.value("tiny", false)) config.layers = 2, config.heads = 2, features = 40;
  const int64_t inner = config.heads * config.head_dim;
  out.work = {config.layers, config.dim, inner, config.ffn_factor * config.dim, features, false};
  hold<ScbertNetwork, ScbertCells>(
      out, std::make_unique<ScbertNetwork>(
               config, features,
               ScbertNetwork::Heads{.bins = false, .classes = kClasses, .rows = config.positions},
               random_weights(1)));
}

void scfoundation(Grafted& out, const nlohmann::json& sizes) {
  ScfoundationConfig config;
  if (sizes.value("tiny", false)) config.positions = 3000, config.dim = 96, config.layers = 2;
  config.dropout = 0;
  out.work = {config.layers, config.dim, config.dim, config.ffn(), 0, false};
  hold<ScfoundationNetwork, ScfoundationCells>(
      out, std::make_unique<ScfoundationNetwork>(config, 0, random_weights(1), kClasses),
      CellEmbedding::standard);
}

struct Kind {
  const char* name;
  void (*make)(Grafted& out, const nlohmann::json& sizes);
  // Token ids of a cell and the values beside them, ids without those of special tokens drawn from
  // a shuffled pool of `known`.
  int64_t known, tiny_known;
  void (*cell)(std::span<const int32_t> drawn, RandomStream& random, std::span<int32_t> genes,
               std::span<float> values);
};

// Genes from the highest rank down.
void ranked(std::span<const int32_t> drawn, RandomStream&, std::span<int32_t> genes,
            std::span<float> values) {
  for (size_t i = 0; i < genes.size(); ++i) {
    genes[i] = 2 + drawn[i];
    values[i] = static_cast<float>(i);
  }
}

// All genes, nine of ten not expressed.
void binned(std::span<const int32_t>, RandomStream& random, std::span<int32_t> genes,
            std::span<float> values) {
  for (size_t i = 0; i < genes.size(); ++i) {
    const bool expressed = i + 1 < genes.size() && random.below(10) == 0;
    genes[i] = expressed ? 1 + static_cast<int32_t>(random.below(5)) : 0;
    values[i] = static_cast<float>(i);
  }
}

// Expressed genes in their order, then T and S.
void expressed(std::span<const int32_t> drawn, RandomStream& random, std::span<int32_t> genes,
               std::span<float> values) {
  const size_t n = genes.size() - 2;
  std::copy_n(drawn.begin(), n, genes.begin());
  std::sort(genes.begin(), genes.begin() + static_cast<std::ptrdiff_t>(n));
  for (size_t i = 0; i < n; ++i) values[i] = static_cast<float>(0.2 + 4 * random.uniform());
  const auto known = static_cast<int32_t>(drawn.size());
  genes[n] = known, values[n] = 4;
  genes[n + 1] = known + 1, values[n + 1] = 3.6F;
}

constexpr Kind kKinds[] = {{"geneformer", geneformer, 25424, 2998, ranked},
                           {"scbert", scbert, 0, 0, binned},
                           {"scfoundation", scfoundation, 19264, 2998, expressed}};

const Kind& kind_of(const std::string& name) {
  for (const Kind& kind : kKinds)
    if (name == kind.name) return kind;
  throw ConfigError("no network is called \"" + name +
                    "\"; there are scgpt, geneformer, scbert, scfoundation");
}

}  // namespace

void make_network(Grafted& out, const nlohmann::json& sizes) {
  kind_of(sizes.at("model")).make(out, sizes);
}

void fill_cell(const nlohmann::json& sizes, RandomStream& random, std::span<int32_t> genes,
               std::span<float> values) {
  const Kind& kind = kind_of(sizes.at("model"));
  std::vector<int32_t> pool(
      static_cast<size_t>(sizes.value("tiny", false) ? kind.tiny_known : kind.known));
  std::iota(pool.begin(), pool.end(), 0);
  for (size_t i = 0; i < std::min(pool.size(), genes.size()); ++i)
    std::swap(pool[i], pool[i + random.below(pool.size() - i)]);
  kind.cell(pool, random, genes, values);
}

}  // namespace scgraft::whole
