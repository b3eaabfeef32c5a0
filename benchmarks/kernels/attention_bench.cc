// SPDX-License-Identifier: Apache-2.0
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

class Case {
 public:
  Case(const std::vector<int32_t>& query_lengths, const std::vector<int32_t>& key_lengths, float p)
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
        dv_(k_.shape(), DType::f32) {
    for (size_t cell = 0; cell < key_lengths.size(); ++cell) {
      ids_.push_back(static_cast<int64_t>(cell));
      pairs_ += int64_t{query_lengths[cell]} * key_lengths[cell];
    }
  }

  void forward() {
    attention(ctx_, q_.view(), k_.view(), v_.view(), Packing::over(query_offsets_, ids_),
              Packing::over(key_offsets_, ids_), kHeads, dropout_, o_.view(), lse_.view());
  }
  void backward() {
    attention_backward(ctx_, q_.view(), k_.view(), v_.view(), o_.view(), lse_.view(), dout_.view(),
                       Packing::over(query_offsets_, ids_), Packing::over(key_offsets_, ids_),
                       kHeads, dropout_, dq_.view(), dk_.view(), dv_.view());
  }
  // Two products forward, five backward.
  Cost forward_cost() const {
    return {2 * q_.nbytes() + 2 * k_.nbytes() + lse_.nbytes(), 4 * kHeadDim * kHeads * pairs_};
  }
  Cost backward_cost() const {
    return {4 * q_.nbytes() + 4 * k_.nbytes() + lse_.nbytes(), 10 * kHeadDim * kHeads * pairs_};
  }

 private:
  Context ctx_;
  std::vector<int32_t> query_offsets_;
  std::vector<int32_t> key_offsets_;
  std::vector<int64_t> ids_;
  Dropout dropout_;
  Tensor q_, k_, v_, dout_, o_, lse_, dq_, dk_, dv_;
  int64_t pairs_ = 0;
};

void forward(benchmark::State& state, const std::vector<int32_t>& queries,
             const std::vector<int32_t>& keys, float dropout) {
  Case c(queries, keys, dropout);
  c.forward();
  for (auto _ : state) c.forward();
  report(state, c.forward_cost());
}

void backward(benchmark::State& state, const std::vector<int32_t>& queries,
              const std::vector<int32_t>& keys, float dropout) {
  Case c(queries, keys, dropout);
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

}  // namespace
}  // namespace scgraft
