// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/tokenizer.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

// The first k of a random order of 0..n-1.
void draw(RandomStream random, int32_t n, int32_t k, std::vector<int32_t>& drawn) {
  drawn.resize(static_cast<size_t>(n));
  std::iota(drawn.begin(), drawn.end(), 0);
  for (int32_t i = 0; i < k; ++i) {
    const auto j = static_cast<size_t>(i) + random.below(static_cast<uint64_t>(n - i));
    std::swap(drawn[static_cast<size_t>(i)], drawn[j]);
  }
  drawn.resize(static_cast<size_t>(k));
}

}  // namespace

void tokenise(int32_t cls_id, std::span<const int32_t> genes, std::span<const float> bins,
              std::span<int32_t> out_genes, std::span<float> out_values) {
  out_genes[0] = cls_id;
  out_values[0] = 0;
  std::copy(genes.begin(), genes.end(), out_genes.begin() + 1);
  std::copy(bins.begin(), bins.end(), out_values.begin() + 1);
}

uint64_t cell_key(std::span<const int32_t> genes, std::span<const float> values) {
  uint64_t key = 0;
  for (size_t i = 0; i < genes.size(); ++i) {
    // Two rounds of a multiplicative mix; the sum does not see the order.
    uint64_t pair = static_cast<uint64_t>(static_cast<uint32_t>(genes[i])) << 32 |
                    std::bit_cast<uint32_t>(values[i]);
    pair = (pair ^ pair >> 30) * 0xBF58476D1CE4E5B9u;
    pair = (pair ^ pair >> 27) * 0x94D049BB133111EBu;
    key += pair ^ pair >> 31;
  }
  return key;
}

double tie_break(uint64_t seed, uint64_t key, int32_t gene) {
  const PhiloxCounter words =
      philox({static_cast<uint32_t>(RandomUse::binning_ties), static_cast<uint32_t>(gene),
              static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
             {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uniform53(words[0], words[1]);
}

void sample_genes(uint64_t seed, uint64_t key, int32_t n, int32_t k, std::vector<int32_t>& kept) {
  // The smaller side is drawn: those to keep, or those to leave out.
  const bool leave_out = k > n / 2;
  draw(RandomStream(seed, RandomUse::gene_sampling, static_cast<uint32_t>(key),
                    static_cast<uint32_t>(key >> 32)),
       n, leave_out ? n - k : k, kept);
  std::vector<uint8_t> drawn(static_cast<size_t>(n), 0);
  for (const int32_t gene : kept) drawn[static_cast<size_t>(gene)] = 1;
  kept.clear();
  for (int32_t gene = 0; gene < n; ++gene)
    if ((drawn[static_cast<size_t>(gene)] != 0) != leave_out) kept.push_back(gene);
}

void mask_values(std::span<const float> values, const MaskOptions& options, int64_t epoch,
                 int64_t cell, std::span<float> hidden, std::span<uint8_t> masked) {
  require<ConfigError>(options.ratio >= 0 && options.ratio < 1,
                       "the mask ratio must be at least 0 and below 1, got ", options.ratio);
  require(hidden.size() == values.size() && masked.size() == values.size(), "mask_values: wanted ",
          values.size(), " places, got ", hidden.size(), " and ", masked.size());
  std::copy(values.begin(), values.end(), hidden.begin());
  std::fill(masked.begin(), masked.end(), uint8_t{0});
  if (values.empty()) return;
  const auto genes = static_cast<int32_t>(values.size()) - 1;
  std::vector<int32_t> drawn;
  draw(RandomStream(options.seed, RandomUse::masking, static_cast<uint32_t>(epoch),
                    static_cast<uint32_t>(cell)),
       genes, static_cast<int32_t>(options.ratio * genes), drawn);
  for (const int32_t gene : drawn) {
    hidden[static_cast<size_t>(gene) + 1] = options.mask_value;
    masked[static_cast<size_t>(gene) + 1] = 1;
  }
}

}  // namespace scgraft
