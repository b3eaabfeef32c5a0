// SPDX-License-Identifier: Apache-2.0
#include <utility>
#include <vector>

#include "benchmarks/kernels/bench.h"
#include "kernels/attention.h"

namespace scgraft {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kHeadDim = 64;

std::vector<int32_t> offsets_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> offsets{0};
  for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

// Cells between 200 and 1000 tokens, 600 on average.
std::vector<int32_t> ragged(int64_t cells) {
  RandomStream stream(1, RandomUse::simulate);
  std::vector<int32_t> lengths;
  for (int64_t i = 0; i < cells; ++i)
    lengths.push_back(200 + static_cast<int32_t>(stream.below(801)));
  return lengths;
}

std::vector<int32_t> same(int64_t cells, int32_t length) {
  return std::vector<int32_t>(static_cast<size_t>(cells), length);
}

// Rules and prefix of one call; everything but a number of prefix rows stands for all cells.
struct Rules {
  double seen = 1;   // share of keys whose bit is set, one in 1 / share
  double known = 1;  // share of keys that are known
  bool causal = false;
  int64_t prefix = 0;
  bool prefix_only = false;  // of the gradients
};

class Case {
 public:
  Case(const std::vector<int32_t>& query_lengths, const std::vector<int32_t>& key_lengths, float p,
       Rules rules = {})
      : query_offsets_(offsets_of(query_lengths)),
        key_offsets_(offsets_of(key_lengths)),
        dropout_{p, static_cast<uint32_t>(RandomUse::dropout)},
        q_(random_tensor({query_offsets_.back(), kHeads * kHeadDim}, 1)),
        k_(random_tensor({key_offsets_.back(), kHeads * kHeadDim}, 2)),
        v_(random_tensor({key_offsets_.back(), kHeads * kHeadDim}, 3)),
        dout_(random_tensor(q_.shape(), 4)),
        o_(q_.shape(), DType::f32),
        lse_({query_offsets_.back(), kHeads}, DType::f32),
        dq_(q_.shape(), DType::f32),
        dk_(k_.shape(), DType::f32),
        dv_(k_.shape(), DType::f32),
        prefix_k_(random_tensor({rules.prefix, kHeads * kHeadDim}, 5)),
        prefix_v_(random_tensor(prefix_k_.shape(), 6)),
        prefix_dk_(prefix_k_.shape(), DType::f32),
        prefix_dv_(prefix_k_.shape(), DType::f32),
        rules_(rules) {
    for (size_t cell = 0; cell < key_lengths.size(); ++cell) {
      ids_.push_back(static_cast<int64_t>(cell));
      pairs_ += pairs(query_lengths[cell], key_lengths[cell]);
      prefix_pairs_ += query_lengths[cell] * rules.prefix;
    }
    const Packing keys = Packing::over(key_offsets_, ids_);
    if (rules.seen < 1) {
      const auto period = static_cast<int64_t>(1 / rules.seen);
      std::vector<uint8_t> marks;
      for (int64_t cell = 0; cell < keys.cells(); ++cell)
        for (int64_t j = 0; j < keys.length(cell); ++j) marks.push_back(j % period == 0);
      key_bits_ = pack_key_bits(keys, marks);
      mask_.key_bits = view_of(std::as_const(key_bits_).data(), Shape{key_words(keys)});
    }
    if (rules.known < 1) {
      for (const int32_t length : key_lengths)
        known_.push_back(static_cast<int32_t>(rules.known * length));
      mask_.known = view_of(std::as_const(known_).data(), Shape{keys.cells()});
    }
    mask_.causal = rules.causal;
    if (rules.prefix > 0) {
      prefix_ = {.k = std::as_const(prefix_k_).view(), .v = std::as_const(prefix_v_).view()};
      dprefix_ = {.k = prefix_dk_.view(), .v = prefix_dv_.view()};
    }
  }

  void forward() {
    attention(ctx_, q_.view(), k_.view(), v_.view(), Packing::over(query_offsets_, ids_),
              Packing::over(key_offsets_, ids_), kHeads, dropout_, o_.view(), lse_.view(), mask_,
              prefix_);
  }
  void backward() {
    attention_backward(ctx_, q_.view(), k_.view(), v_.view(), o_.view(), lse_.view(), dout_.view(),
                       Packing::over(query_offsets_, ids_), Packing::over(key_offsets_, ids_),
                       kHeads, dropout_, wanted(dq_), wanted(dk_), wanted(dv_), mask_, prefix_,
                       dprefix_);
  }
  // Two products forward; five backward, of which dq is not wanted with the prefix alone.
  Cost forward_cost() const {
    return {2 * q_.nbytes() + 2 * k_.nbytes() + lse_.nbytes() + 2 * prefix_k_.nbytes(),
            4 * kHeadDim * kHeads * (pairs_ + prefix_pairs_)};
  }
  Cost backward_cost() const {
    const int64_t prefix_bytes = 6 * prefix_k_.nbytes();
    if (rules_.prefix_only)
      return {3 * q_.nbytes() + lse_.nbytes() + prefix_bytes,
              8 * kHeadDim * kHeads * prefix_pairs_};
    return {4 * q_.nbytes() + 4 * k_.nbytes() + lse_.nbytes() + prefix_bytes,
            10 * kHeadDim * kHeads * (pairs_ + prefix_pairs_)};
  }

 private:
  // Pairs of a query and a key of its cell that it sees.
  int64_t pairs(int64_t queries, int64_t keys) const {
    if (rules_.causal) return keys * (keys + 1) / 2;
    if (rules_.known < 1) {
      const auto known = static_cast<int64_t>(rules_.known * static_cast<double>(keys));
      return queries * known + keys - known;
    }
    const auto period = static_cast<int64_t>(1 / rules_.seen);
    return queries * ((keys + period - 1) / period);
  }
  TensorView wanted(Tensor& gradient) const {
    return rules_.prefix_only ? TensorView() : gradient.view();
  }

  Context ctx_;
  std::vector<int32_t> query_offsets_;
  std::vector<int32_t> key_offsets_;
  std::vector<int64_t> ids_;
  Dropout dropout_;
  Tensor q_, k_, v_, dout_, o_, lse_, dq_, dk_, dv_;
  Tensor prefix_k_, prefix_v_, prefix_dk_, prefix_dv_;
  Rules rules_;
  std::vector<int64_t> key_bits_;
  std::vector<int32_t> known_;
  AttentionMask mask_;
  AttentionPrefix prefix_;
  AttentionPrefixGradient dprefix_;
  int64_t pairs_ = 0;
  int64_t prefix_pairs_ = 0;
};

void forward(benchmark::State& state, const std::vector<int32_t>& queries,
             const std::vector<int32_t>& keys, float dropout, Rules rules = {}) {
  Case c(queries, keys, dropout, rules);
  c.forward();
  for (auto _ : state) c.forward();
  report(state, c.forward_cost());
}

void backward(benchmark::State& state, const std::vector<int32_t>& queries,
              const std::vector<int32_t>& keys, float dropout, Rules rules = {}) {
  Case c(queries, keys, dropout, rules);
  c.forward();
  c.backward();
  for (auto _ : state) c.backward();
  report(state, c.backward_cost());
}

#define ATTENTION_BENCH(name, ...)                                                             \
  BENCHMARK_CAPTURE(forward, name, __VA_ARGS__)->UseRealTime()->Unit(benchmark::kMillisecond); \
  BENCHMARK_CAPTURE(backward, name, __VA_ARGS__)->UseRealTime()->Unit(benchmark::kMillisecond)

ATTENTION_BENCH(8x601, same(8, 601), same(8, 601), 0.0f);
ATTENTION_BENCH(8x601_dropout, same(8, 601), same(8, 601), 0.2f);
ATTENTION_BENCH(8x1201, same(8, 1201), same(8, 1201), 0.0f);
ATTENTION_BENCH(64_ragged, ragged(64), ragged(64), 0.0f);
ATTENTION_BENCH(64x601_cls_only, same(64, 1), same(64, 601), 0.0f);
// Masks and prefix: cells of 1200 tokens as in training, fewer of them.
ATTENTION_BENCH(4x1200, same(4, 1200), same(4, 1200), 0.0f);
ATTENTION_BENCH(4x1200_key_bits, same(4, 1200), same(4, 1200), 0.0f, Rules{.seen = 0.5});
ATTENTION_BENCH(4x1200_known, same(4, 1200), same(4, 1200), 0.0f, Rules{.known = 0.6});
ATTENTION_BENCH(4x1200_causal, same(4, 1200), same(4, 1200), 0.0f, Rules{.causal = true});
ATTENTION_BENCH(4x1200_prefix, same(4, 1200), same(4, 1200), 0.0f, Rules{.prefix = 8});
ATTENTION_BENCH(4x1200_prefix_only, same(4, 1200), same(4, 1200), 0.0f,
                Rules{.prefix = 8, .prefix_only = true});

}  // namespace
}  // namespace scgraft
