// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numbers>

#include "benchmarks/kernels/bench.h"
#include "kernels/attention.h"

namespace scgraft {
namespace {

// Mask and prefix of one call; everything but a number of prefix rows stands for all cells.
struct Rules {
  double seen = 1;   // share of keys whose bit is set, one in 1 / share
  double known = 1;  // share of keys that are known
  bool causal = false;
  int64_t prefix = 0;
  bool prefix_only = false;  // of the gradients
};

// A network's attention over the cells of one batch.
struct Shapes {
  const char* name;
  std::vector<int32_t> queries;  // lengths by cell
  std::vector<int32_t> keys;
  int64_t heads = 8;
  int64_t head_dim = 64;
  float dropout = 0;
  Rules rules = {};
};

std::vector<int32_t> same(size_t cells, int32_t length) {
  return std::vector<int32_t>(cells, length);
}

// Log-normal lengths, mean 600, standard deviation 300, at most 1,201.
std::vector<int32_t> ragged(size_t cells) {
  RandomStream stream(1, RandomUse::simulate);
  const double variance = std::log(1.25), mean = std::log(600.0) - variance / 2;
  std::vector<int32_t> lengths;
  for (size_t i = 0; i < cells; ++i) {
    const double radius = std::sqrt(-2 * std::log(1 - stream.uniform()));
    const double normal = radius * std::cos(2 * std::numbers::pi * stream.uniform());
    const double length = std::exp(mean + std::sqrt(variance) * normal);
    lengths.push_back(std::clamp(static_cast<int32_t>(length), 1, 1201));
  }
  return lengths;
}

const std::vector<Shapes>& shapes() {
  static const std::vector<Shapes> cpu = {
      {"8x601", same(8, 601), same(8, 601)},
      {"8x601_dropout", same(8, 601), same(8, 601), 8, 64, 0.2f},
      {"8x1201", same(8, 1201), same(8, 1201)},
      {"64_ragged", ragged(64), ragged(64)},
      {"64x601_cls_only", same(64, 1), same(64, 601)},
      {"4x1200", same(4, 1200), same(4, 1200)},
      {"4x1200_key_bits", same(4, 1200), same(4, 1200), 8, 64, 0, {.seen = 0.5}},
      {"4x1200_known", same(4, 1200), same(4, 1200), 8, 64, 0, {.known = 0.6}},
      {"4x1200_causal", same(4, 1200), same(4, 1200), 8, 64, 0, {.causal = true}},
      {"4x1200_prefix", same(4, 1200), same(4, 1200), 8, 64, 0, {.prefix = 8}},
      {"4x1200_prefix_only",
       same(4, 1200),
       same(4, 1200),
       8,
       64,
       0,
       {.prefix = 8, .prefix_only = true}},
  };
  static const std::vector<Shapes> gpu = {
      {"scgpt_8x601", same(8, 601), same(8, 601)},
      {"scgpt_64x512", same(64, 512), same(64, 512)},
      {"scgpt_64x1201", same(64, 1201), same(64, 1201)},
      {"scgpt_64x1201_dropout", same(64, 1201), same(64, 1201), 8, 64, 0.2f},
      {"scgpt_64_ragged", ragged(64), ragged(64)},
      {"scgpt_64x3001", same(64, 3001), same(64, 3001)},
      {"scgpt_64x1201_cls_only", same(64, 1), same(64, 1201)},
      {"geneformer_32x2048", same(32, 2048), same(32, 2048), 4, 64},
      {"geneformer_v2_4x4096", same(4, 4096), same(4, 4096), 18, 64},
      {"scfoundation_16x4096", same(16, 4096), same(16, 4096), 12, 64},
      {"llama_1x2048_causal", same(1, 2048), same(1, 2048), 32, 128, 0, {.causal = true}},
      {"scgpt_64x1201_key_bits", same(64, 1201), same(64, 1201), 8, 64, 0, {.seen = 0.5}},
      {"scgpt_64x1201_known", same(64, 1201), same(64, 1201), 8, 64, 0, {.known = 0.6}},
      {"scgpt_64x1201_prefix_8", same(64, 1201), same(64, 1201), 8, 64, 0, {.prefix = 8}},
      {"scgpt_64x1201_prefix_32", same(64, 1201), same(64, 1201), 8, 64, 0, {.prefix = 32}},
      {"scgpt_64x1201_prefix_8_only",
       same(64, 1201),
       same(64, 1201),
       8,
       64,
       0,
       {.prefix = 8, .prefix_only = true}},
  };
  static const std::vector<Shapes> tiny = {
      {"2x70", same(2, 70), same(2, 70), 1, 64},
      {"2x70_dropout", same(2, 70), same(2, 70), 1, 64, 0.2f},
      {"2x70_known", same(2, 70), same(2, 70), 1, 64, 0, {.known = 0.6}},
      {"2x70_bits", same(2, 70), same(2, 70), 1, 64, 0, {.seen = 0.5}},
      {"2x70_prefix", same(2, 70), same(2, 70), 1, 64, 0, {.prefix = 8, .prefix_only = true}},
  };
  return by_device(cpu, gpu, tiny);
}

struct Case {
  Case(const Shapes& s, DType type)
      : heads(s.heads),
        head_dim(s.head_dim),
        queries(ctx, s.queries),
        keys(ctx, s.keys),
        dropout{s.dropout, static_cast<uint32_t>(RandomUse::dropout)},
        q(random_tensor({queries.packing().tokens(), heads * head_dim}, 1, type)),
        k(random_tensor({keys.packing().tokens(), heads * head_dim}, 2, type)),
        v(random_tensor(k.shape(), 3, type)),
        dout(random_tensor(q.shape(), 4, type)),
        o(new_tensor(q.shape(), type)),
        lse(new_tensor({q.dim(0), heads})),
        dq(new_tensor(q.shape(), type)),
        dk(new_tensor(k.shape(), type)),
        dv(new_tensor(k.shape(), type)),
        rules(s.rules),
        prefix_k(random_tensor({rules.prefix, heads * head_dim}, 5, type)),
        prefix_v(random_tensor(prefix_k.shape(), 6, type)),
        prefix_dk(new_tensor(prefix_k.shape())),
        prefix_dv(new_tensor(prefix_k.shape())) {
    for (size_t cell = 0; cell < s.keys.size(); ++cell) {
      pairs += seen_pairs(s.queries[cell], s.keys[cell]);
      prefix_pairs += s.queries[cell] * rules.prefix;
    }
    if (rules.seen < 1) {
      const auto period = static_cast<int64_t>(1 / rules.seen);
      std::vector<uint8_t> marks;
      for (const int32_t length : s.keys)
        for (int64_t j = 0; j < length; ++j) marks.push_back(j % period == 0);
      key_bits = tensor_of(pack_key_bits(keys.packing(), marks));
      mask.key_bits = std::as_const(key_bits).view();
    }
    if (rules.known < 1) {
      std::vector<int32_t> counts;
      for (const int32_t length : s.keys)
        counts.push_back(static_cast<int32_t>(rules.known * length));
      known = tensor_of(counts);
      mask.known = std::as_const(known).view();
    }
    mask.causal = rules.causal;
    if (rules.prefix > 0) {
      prefix = {.k = std::as_const(prefix_k).view(), .v = std::as_const(prefix_v).view()};
      dprefix = {.k = prefix_dk.view(), .v = prefix_dv.view()};
    }
  }

  void forward() {
    attention(ctx, q.view(), k.view(), v.view(), queries.packing(), keys.packing(), heads, dropout,
              o.view(), lse.view(), mask, prefix);
  }
  void backward() {
    attention_backward(ctx, q.view(), k.view(), v.view(), o.view(), lse.view(), dout.view(),
                       queries.packing(), keys.packing(), heads, dropout, wanted(dq), wanted(dk),
                       wanted(dv), mask, prefix, dprefix);
  }
  // Two products forward; five backward, of which dq is not wanted with the prefix alone.
  Cost forward_cost() const {
    return {.bytes = 2 * q.nbytes() + 2 * k.nbytes() + lse.nbytes() + 2 * prefix_k.nbytes(),
            .flops = 4 * head_dim * heads * (pairs + prefix_pairs),
            .type = q.dtype()};
  }
  Cost backward_cost() const {
    const int64_t prefix_bytes = 2 * prefix_k.nbytes() + 4 * prefix_dk.nbytes();
    if (rules.prefix_only)
      return {.bytes = 3 * q.nbytes() + lse.nbytes() + prefix_bytes,
              .flops = 8 * head_dim * heads * prefix_pairs,
              .type = q.dtype()};
    return {.bytes = 4 * q.nbytes() + 4 * k.nbytes() + lse.nbytes() + prefix_bytes,
            .flops = 10 * head_dim * heads * (pairs + prefix_pairs),
            .type = q.dtype()};
  }
  // Pairs of a query and a key of its cell that it sees.
  int64_t seen_pairs(int64_t n_queries, int64_t n_keys) const {
    if (rules.causal) return n_keys * (n_keys + 1) / 2;
    if (rules.known < 1) {
      const auto n_known = static_cast<int64_t>(rules.known * static_cast<double>(n_keys));
      return n_queries * n_known + n_keys - n_known;
    }
    const auto period = static_cast<int64_t>(1 / rules.seen);
    return n_queries * ((n_keys + period - 1) / period);
  }
  TensorView wanted(Tensor& gradient) const {
    return rules.prefix_only ? TensorView() : gradient.view();
  }

  Context ctx{bench_device()};
  int64_t heads, head_dim;
  BenchCells queries, keys;
  Dropout dropout;
  Tensor q, k, v, dout, o, lse, dq, dk, dv;
  Rules rules;
  Tensor prefix_k, prefix_v, prefix_dk, prefix_dv, key_bits, known;
  AttentionMask mask;
  AttentionPrefix prefix;
  AttentionPrefixGradient dprefix;
  int64_t pairs = 0;
  int64_t prefix_pairs = 0;
};

void forward(benchmark::State& state) {
  const Shapes& s = shapes()[static_cast<size_t>(state.range(1))];
  state.SetLabel(s.name);
  Case c(s, bench_type(state));
  c.forward();
  measure(state, c.ctx, c.forward_cost(), [&] { c.forward(); });
}

void backward(benchmark::State& state) {
  const Shapes& s = shapes()[static_cast<size_t>(state.range(1))];
  state.SetLabel(s.name);
  Case c(s, bench_type(state));
  c.forward();
  c.backward();
  measure(state, c.ctx, c.backward_cost(), [&] { c.backward(); });
}

void sizes(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (size_t i = 0; i < shapes().size(); ++i) lists.push_back({static_cast<int64_t>(i)});
  in_types(b, {"case"}, lists);
  b->Unit(benchmark::kMillisecond);
}
BENCHMARK(forward)->Name("attention/forward")->Apply(sizes);
BENCHMARK(backward)->Name("attention/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
