// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropout_rows.h"

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace scgraft {
namespace {

// Philox multipliers and key increments, as in runtime/random.h.
constexpr uint32_t kMultiplyA = 0xD2511F53u;
constexpr uint32_t kMultiplyB = 0xCD9E8D57u;
constexpr uint32_t kKeyStepA = 0x9E3779B9u;
constexpr uint32_t kKeyStepB = 0xBB67AE85u;
constexpr int kRounds = 10;

// Four Philox calls side by side: a 32-bit word of each lives in the low half of a 64-bit lane.
// The high halves hold what is left of earlier products; the multiplication does not read them.
typedef uint64_t Words __attribute__((vector_size(32)));
constexpr int kCalls = 4;

inline Words splat(uint64_t x) { return Words{} + x; }

// Full product of the low halves. Generic vector code would multiply 64 x 64 bits here, which is
// three times the work.
inline Words multiply_low(Words x, uint32_t m) {
#if defined(__AVX2__)
  __m256i product, a;
  const Words b = splat(m);
  __m256i bb;
  std::memcpy(&a, &x, sizeof a);
  std::memcpy(&bb, &b, sizeof bb);
  product = _mm256_mul_epu32(a, bb);
  Words result;
  std::memcpy(&result, &product, sizeof result);
  return result;
#else
  return (x & 0xffffffffu) * m;
#endif
}

inline void store_call_blocks(Words w0, Words w1, Words w2, Words w3, uint16_t* out) {
  const Words low = (w0 & 0xffffffffu) | (w1 << 32);
  const Words high = (w2 & 0xffffffffu) | (w3 << 32);
  uint64_t words[2 * kCalls];
  for (int i = 0; i < kCalls; ++i) {
    words[2 * i] = low[i];
    words[2 * i + 1] = high[i];
  }
  std::memcpy(out, words, sizeof words);
}

}  // namespace

RowDropout::RowDropout(const char* op, Context& ctx, Dropout dropout, const Packing* packing,
                       int64_t rows)
    : op_(op),
      active_(dropout.active()),
      site_(dropout.site),
      hidden_(0),
      key_(dropout_key(ctx.random())),
      packing_(packing) {
  require<ConfigError>(dropout.p >= 0 && dropout.p < 1, op, ": dropout must be in [0, 1), got ",
                       dropout.p, "; choose a smaller one, 0 switches it off");
  if (!active_) return;
  hidden_ = HiddenDropout(dropout.p);
  require<ConfigError>(hidden_.threshold < 65536, op, ": dropout ", dropout.p,
                       " keeps nothing at the resolution of 1/65536; choose a smaller one");
  require(packing != nullptr, op, ": dropout ", dropout.p,
          " needs the packing of the rows, got none; pass it or switch dropout off");
  require(!packing->offsets.empty() && packing->tokens() == rows, op,
          ": the packing must describe ", rows, " rows, got ",
          packing->offsets.empty() ? 0 : packing->tokens(), "; pass the packing of this tensor");
  require(static_cast<int64_t>(packing->ids.size()) == packing->cells(), op,
          ": dropout needs the id of each of the ", packing->cells(), " cells, got ",
          packing->ids.size(), "; give the packing cell ids");
}

DeviceDropout RowDropout::on_device(const Context& ctx) const {
  if (!active_) return {};
  return {.active = true,
          .site = site_,
          .threshold = hidden_.threshold,
          .scale = hidden_.scale,
          .key = key_,
          .packing = packed_rows(op_, ctx, *packing_)};
}

RowPlace RowDropout::place(int64_t row) const {
  const int64_t cell = packing_->cell_of(row);
  return {static_cast<uint32_t>(packing_->ids[static_cast<size_t>(cell)]),
          static_cast<uint32_t>(row - packing_->begin(cell))};
}

// Philox with the work that all calls of a row share done once: they differ in the last counter
// word only, which reaches two words after the second round.
void RowDropout::draw(RowPlace place, int64_t feature, int64_t n, uint16_t* lanes) const {
  // Round 1 for counter words 0, 1 and 3; word 2 still misses the block number.
  uint32_t key_a = key_[0];
  uint32_t key_b = key_[1];
  const uint64_t a1 = uint64_t{kMultiplyA} * site_;
  const uint64_t b1 = uint64_t{kMultiplyB} * place.position;
  const uint32_t word0 = static_cast<uint32_t>(b1 >> 32) ^ place.cell ^ key_a;
  const uint32_t word1 = static_cast<uint32_t>(b1);
  const uint32_t word2 = static_cast<uint32_t>(a1 >> 32) ^ key_b;
  const uint32_t word3 = static_cast<uint32_t>(a1);
  key_a += kKeyStepA;
  key_b += kKeyStepB;
  // Round 2: the product of word 0 is shared.
  const uint64_t a2 = uint64_t{kMultiplyA} * word0;
  const Words mix0 = splat(word1 ^ key_a);
  const Words shared2 = splat(static_cast<uint32_t>(a2 >> 32) ^ word3 ^ key_b);
  const Words shared3 = splat(static_cast<uint32_t>(a2));

  constexpr int kGroups = 4;  // independent chains, to hide the latency of the product
  const int64_t blocks = (n + 7) / 8;
  for (int64_t b = 0; b < blocks; b += kGroups * kCalls) {
    Words w0[kGroups], w1[kGroups], w2[kGroups], w3[kGroups];
    const uint64_t first = static_cast<uint64_t>(feature / 8 + b);
    for (int g = 0; g < kGroups; ++g) {
      const Words number = Words{0, 1, 2, 3} + splat(first + static_cast<uint64_t>(kCalls * g));
      const Words product = multiply_low(number ^ splat(word2), kMultiplyB);
      w0[g] = (product >> 32) ^ mix0;
      w1[g] = product;
      w2[g] = shared2;
      w3[g] = shared3;
    }
    uint32_t round_a = key_a;
    uint32_t round_b = key_b;
    for (int round = 2; round < kRounds; ++round) {
      round_a += kKeyStepA;
      round_b += kKeyStepB;
      for (int g = 0; g < kGroups; ++g) {
        const Words a = multiply_low(w0[g], kMultiplyA);
        const Words c = multiply_low(w2[g], kMultiplyB);
        w0[g] = (c >> 32) ^ w1[g] ^ splat(round_a);
        w1[g] = c;
        w2[g] = (a >> 32) ^ w3[g] ^ splat(round_b);
        w3[g] = a;
      }
    }
    for (int g = 0; g < kGroups; ++g)
      store_call_blocks(w0[g], w1[g], w2[g], w3[g], lanes + 8 * (b + kCalls * g));
  }
}

}  // namespace scgraft
