// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_simd.h"

#include "kernels/simd.h"
#include "kernels/simd_gemm.h"
#include "kernels/simd_philox.h"

// One head of one cell, all keys and values packed into scratch. Scores are kept in units of log2:
// q is packed with the factor log2(e) / sqrt(head_dim), so that exp(s - m) is one exp2.
namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

// Tiles of scores, chosen so that a tile and the panel it meets stay in the first-level cache.
constexpr int64_t kForwardQueries = 24;
constexpr int64_t kForwardKeys = 128;
constexpr int64_t kBackwardQueries = 64;
constexpr int64_t kBackwardKeys = 128;
constexpr int64_t kBlockKeys = 16;   // keys of one Philox call
constexpr int64_t kPrefixKeys = 64;  // the most there can be; they are numbered from -64 on
static_assert(kForwardKeys % kPanel == 0 && kBackwardKeys % kPanel == 0);

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

int64_t padded(int64_t floats) { return vectors(floats) * kLanes; }
int64_t panels(int64_t keys) { return (keys + kPanel - 1) / kPanel; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Hands out 64-byte aligned pieces of the scratch memory, or only counts them.
class Pieces {
 public:
  explicit Pieces(float* base) : base_(base) {}
  float* take(int64_t floats) {
    float* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (floats + 15) / 16 * 16;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

// Floats that hold the random bytes of a tile of scores; the last group of lanes may stick out.
int64_t mask_floats(int64_t queries, int64_t keys) {
  return (queries * (keys / kBlockKeys) + kLanes) * kBlockKeys / 4;
}

// Where a tile of keys [j, j + keys) has scores that a mask hides from queries [i, i + rows).
class TileMask {
 public:
  TileMask(const HeadMask& mask, int64_t i, int64_t rows, int64_t j, int64_t keys, float* bias)
      : mask_(mask), j_(j), keys_(keys), bias_(bias) {
    if (j < 0) return;
    const bool diagonal = j < i + rows && i < j + keys;
    limited_ = j + keys > mask.known || (mask.causal && j + keys > i + 1);
    seen_ = (j < mask.known || (mask.self && diagonal)) && !(mask.causal && j >= i + rows);
    if (mask.key_bits == nullptr || !seen_) return;
    uint64_t any = 0;
    uint64_t missing = 0;
    for (int64_t c = 0; c < keys; ++c) {
      const uint64_t bit = static_cast<uint64_t>(mask.key_bits[(j + c) / 64]) >> ((j + c) % 64) & 1;
      bias[c] = bit != 0 ? 0.0f : -__builtin_inff();
      any |= bit;
      missing |= bit ^ 1;
    }
    for (int64_t c = keys; c % kLanes != 0; ++c) bias[c] = 0;
    seen_ = any != 0;
    biased_ = missing != 0;
  }
  bool seen() const { return seen_; }

  // Makes the scores of query i that it does not see -inf.
  void hide(float* scores, int64_t i) const {
    if (biased_)
      for (int64_t c = 0; c < keys_; c += kLanes)
        store(scores + c, load(scores + c) + load(bias_ + c));
    if (!limited_) return;
    const bool self = mask_.self && i >= j_ && i < j_ + keys_;
    const float own = self ? scores[i - j_] : 0;
    int64_t end = mask_.known;
    if (mask_.causal && i + 1 < end) end = i + 1;
    for (int64_t c = end > j_ ? end - j_ : 0; c < keys_; ++c) scores[c] = -__builtin_inff();
    if (self) scores[i - j_] = own;
  }

 private:
  const HeadMask& mask_;
  int64_t j_, keys_;
  float* bias_;  // [keys]: 0 or -inf
  bool seen_ = true;
  bool limited_ = false;
  bool biased_ = false;
};

// Random bytes of queries [i, i + rows) and keys [j, j + 16 blocks), row after row.
void random_bytes(const HeadDropout& dropout, int64_t i, int64_t rows, int64_t j, int64_t blocks,
                  uint8_t* bytes) {
  int64_t row = 0;
  int64_t block = 0;
  for (int64_t done = 0; done < rows * blocks; done += kLanes, bytes += kLanes * kBlockKeys) {
    VecU query;
    VecU group;
    for (int lane = 0; lane < kLanes; ++lane) {
      query[lane] = static_cast<uint32_t>(i + row);
      group[lane] = static_cast<uint32_t>(j / kBlockKeys + block);
      if (++block == blocks) {
        block = 0;
        ++row;
      }
    }
    const VecU zero = {};
    store_blocks(philox({{zero + dropout.site, zero + dropout.cell, query, group}}, dropout.key[0],
                        dropout.key[1]),
                 bytes);
  }
}

// x where the byte of the lane says keep, else 0.
VecF drop(VecF x, const uint8_t* bytes, uint32_t threshold) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes b;
  __builtin_memcpy(&b, bytes, sizeof b);
  return __builtin_convertvector(b, VecU) >= threshold ? x : VecF{};
}

struct ForwardScratch {
  float* k;        // [panels][head_dim][kPanel]
  float* v;        // [keys][width]
  float* q;        // [kForwardQueries][width]
  float* o;        // [kForwardQueries][width]
  float* scores;   // [kForwardQueries][kForwardKeys]
  float* largest;  // [kForwardQueries]
  float* sum;      // [kForwardQueries]
  float* bytes;
  float* bias;      // [kForwardKeys]
  float* prefix_k;  // [panels][head_dim][kPanel]
  float* prefix_v;  // [kPrefixKeys][width]
  int64_t used;

  ForwardScratch(float* base, int64_t keys, int64_t head_dim) {
    Pieces pieces(base);
    const int64_t width = padded(head_dim);
    k = pieces.take(panels(keys) * kPanel * head_dim);
    v = pieces.take(keys * width);
    q = pieces.take(kForwardQueries * width);
    o = pieces.take(kForwardQueries * width);
    scores = pieces.take(kForwardQueries * kForwardKeys);
    largest = pieces.take(kForwardQueries);
    sum = pieces.take(kForwardQueries);
    bytes = pieces.take(mask_floats(kForwardQueries, kForwardKeys));
    bias = pieces.take(kForwardKeys);
    prefix_k = pieces.take(panels(kPrefixKeys) * kPanel * head_dim);
    prefix_v = pieces.take(kPrefixKeys * width);
    used = pieces.used();
  }
};

int64_t forward_scratch(int64_t keys, int64_t head_dim) {
  return ForwardScratch(nullptr, keys, head_dim).used;
}

// One row of a tile: scores [0, keys) become exp2(score - largest), and what the row has summed so
// far is brought to the new largest score. `first`: there is nothing yet. A row that has seen
// nothing has the largest score -inf and the sum 0.
void online_softmax(float* scores, int64_t keys, const uint8_t* bytes, uint32_t threshold,
                    bool first, float& largest, float& sum, float* o, int64_t width) {
  const int64_t vecs = vectors(keys);
  for (int64_t j = keys; j < vecs * kLanes; ++j) scores[j] = -__builtin_inff();
  VecF top = load(scores);
  for (int64_t v = 1; v < vecs; ++v) top = vmax(top, load(scores + v * kLanes));
  VecF now = splat(max_of(top));
  VecF total = {};
  const VecF before = splat(largest);
  if (!first) now = vmax(now, before);
  largest = now[0];
  if (largest == -__builtin_inff()) now = VecF{};  // -inf - -inf is no number
  if (!first) {
    const VecF rescale = exp2_nonpositive(before - now);
    for (int64_t d = 0; d < width; d += kLanes) store(o + d, rescale * load(o + d));
    total[0] = sum * rescale[0];
  }
  for (int64_t v = 0; v < vecs; ++v) {
    VecF p = exp2_nonpositive(load(scores + v * kLanes) - now);
    total += p;
    if (threshold > 0) p = drop(p, bytes + v * kLanes, threshold);
    store(scores + v * kLanes, p);
  }
  sum = sum_of(total);
}

void forward(const AttentionForward& head, float* scratch) {
  const int64_t dim = head.head_dim;
  const int64_t width = padded(dim);
  const ForwardScratch s(scratch, head.keys, dim);
  pack_transposed(head.k, head.stride, head.keys, dim, s.k);
  pack_rows(head.v, head.stride, head.keys, dim, 1.0f, s.v);
  const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(dim));
  auto* bytes = reinterpret_cast<uint8_t*>(s.bytes);

  if (head.prefix.rows > 0) {
    pack_transposed(head.prefix.k, head.stride, head.prefix.rows, dim, s.prefix_k);
    pack_rows(head.prefix.v, head.stride, head.prefix.rows, dim, 1.0f, s.prefix_v);
  }

  for (int64_t i = 0; i < head.queries; i += kForwardQueries) {
    const int64_t rows = smaller(kForwardQueries, head.queries - i);
    pack_rows(head.q + i * head.stride, head.stride, rows, dim, scale, s.q);
    bool first = true;
    const auto add_tile = [&](int64_t j, int64_t keys, const float* k, const float* v) {
      const int64_t blocks = (keys + kBlockKeys - 1) / kBlockKeys;
      const TileMask mask(head.mask, i, rows, j, keys, s.bias);
      if (!mask.seen()) return;
      gemm({s.q, width, 1}, {k, kPanel, dim * kPanel}, {s.scores, kForwardKeys}, rows,
           vectors(keys), dim, false);
      if (head.dropout.threshold > 0) random_bytes(head.dropout, i, rows, j, blocks, bytes);
      for (int64_t r = 0; r < rows; ++r) {
        mask.hide(s.scores + r * kForwardKeys, i + r);
        online_softmax(s.scores + r * kForwardKeys, keys, bytes + r * blocks * kBlockKeys,
                       head.dropout.threshold, first, s.largest[r], s.sum[r], s.o + r * width,
                       width);
      }
      gemm({s.scores, kForwardKeys, 1}, {v, width, kPanel}, {s.o, width}, rows, vectors(dim), keys,
           !first);
      first = false;
    };
    if (head.prefix.rows > 0) add_tile(-kPrefixKeys, head.prefix.rows, s.prefix_k, s.prefix_v);
    for (int64_t j = 0; j < head.keys; j += kForwardKeys)
      add_tile(j, smaller(kForwardKeys, head.keys - j), s.k + j * dim, s.v + j * width);
    for (int64_t r = 0; r < rows; ++r) {
      float* o = s.o + r * width;
      if (first) {
        s.largest[r] = -__builtin_inff();
        s.sum[r] = 0;
        for (int64_t d = 0; d < width; ++d) o[d] = 0;
      }
      unpack_rows(o, 1, dim, s.sum[r] == 0 ? 0 : head.dropout.scale / s.sum[r],
                  head.o + (i + r) * head.stride, head.stride);
      head.lse[(i + r) * head.lse_stride] = kLn2 * (s.largest[r] + __builtin_log2f(s.sum[r]));
    }
  }
}

struct BackwardScratch {
  float* q;        // [queries][width], with the factor of the scores
  float* dout;     // [queries][width]
  float* dq;       // [queries][width]
  float* lse;      // [queries], in units of log2; +inf where nothing is seen: all weights 0
  float* delta;    // [queries], dout . o / dropout scale
  float* k_panel;  // [panels][head_dim][kPanel]
  float* v_panel;  // [panels][head_dim][kPanel]
  float* k;        // [kBackwardKeys][width]
  float* dk;       // [kBackwardKeys][width]
  float* dv;       // [kBackwardKeys][width]
  float* p;        // [kBackwardQueries][kBackwardKeys]
  float* ds;       // [kBackwardQueries][kBackwardKeys]
  float* bytes;
  float* bias;  // [kBackwardKeys]
  int64_t used;

  BackwardScratch(float* base, int64_t queries, int64_t head_dim) {
    Pieces pieces(base);
    const int64_t width = padded(head_dim);
    q = pieces.take(queries * width);
    dout = pieces.take(queries * width);
    dq = pieces.take(queries * width);
    lse = pieces.take(queries);
    delta = pieces.take(queries);
    k_panel = pieces.take(kBackwardKeys * head_dim);
    v_panel = pieces.take(kBackwardKeys * head_dim);
    k = pieces.take(kBackwardKeys * width);
    dk = pieces.take(kBackwardKeys * width);
    dv = pieces.take(kBackwardKeys * width);
    p = pieces.take(kBackwardQueries * kBackwardKeys);
    ds = pieces.take(kBackwardQueries * kBackwardKeys);
    bytes = pieces.take(mask_floats(kBackwardQueries, kBackwardKeys));
    bias = pieces.take(kBackwardKeys);
    used = pieces.used();
  }
};

int64_t backward_scratch(int64_t queries, int64_t head_dim) {
  return BackwardScratch(nullptr, queries, head_dim).used;
}

// One row of a tile: p, which holds scores, becomes the dropped probabilities and ds, which holds
// dout . v, the gradient of the scores, both without the scale of what dropout keeps.
void gradient_row(float* p, float* ds, int64_t vecs, float lse, float delta, const uint8_t* bytes,
                  uint32_t threshold) {
  for (int64_t v = 0; v < vecs; ++v, p += kLanes, ds += kLanes, bytes += kLanes) {
    const VecF whole = exp2_nonpositive(load(p) - lse);
    VecF dp = load(ds);
    VecF dropped = whole;
    if (threshold > 0) {
      dropped = drop(whole, bytes, threshold);
      dp = drop(dp, bytes, threshold);
    }
    store(p, dropped);
    store(ds, whole * (dp - delta));
  }
}

void dropped_row(float* p, int64_t vecs, float lse, const uint8_t* bytes, uint32_t threshold) {
  for (int64_t v = 0; v < vecs; ++v, p += kLanes, bytes += kLanes) {
    const VecF whole = exp2_nonpositive(load(p) - lse);
    store(p, threshold > 0 ? drop(whole, bytes, threshold) : whole);
  }
}

float dot(const float* a, const float* b, int64_t n) {
  VecF sum = {};
  for (int64_t i = 0; i < n; i += kLanes) sum += load_some(a + i, n - i) * load_some(b + i, n - i);
  return sum_of(sum);
}

// One tile of keys in the backward pass; `j` is the number of the first one.
struct KeyTile {
  const float* k;
  const float* v;
  int64_t stride, j, keys;
  float* dk;  // null: not wanted
  float* dv;
  int64_t gradient_stride;
};

void backward_tile(const AttentionBackward& head, const BackwardScratch& s, const KeyTile& tile) {
  const int64_t dim = head.head_dim;
  const int64_t width = padded(dim);
  const int64_t wide = vectors(dim);
  const int64_t vecs = vectors(tile.keys);
  const int64_t blocks = (tile.keys + kBlockKeys - 1) / kBlockKeys;
  const bool scores_too = head.dq != nullptr || tile.dk != nullptr;
  auto* bytes = reinterpret_cast<uint8_t*>(s.bytes);
  const GemmB k_panel{s.k_panel, kPanel, dim * kPanel};
  const GemmB v_panel{s.v_panel, kPanel, dim * kPanel};
  pack_transposed(tile.k, tile.stride, tile.keys, dim, s.k_panel);
  if (scores_too) pack_transposed(tile.v, tile.stride, tile.keys, dim, s.v_panel);
  if (head.dq) pack_rows(tile.k, tile.stride, tile.keys, dim, 1.0f, s.k);

  bool first = true;
  for (int64_t i = 0; i < head.queries; i += kBackwardQueries) {
    const int64_t rows = smaller(kBackwardQueries, head.queries - i);
    const TileMask mask(head.mask, i, rows, tile.j, tile.keys, s.bias);
    if (!mask.seen()) continue;
    const GemmA q{s.q + i * width, width, 1};
    const GemmA dout{s.dout + i * width, width, 1};
    gemm(q, k_panel, {s.p, kBackwardKeys}, rows, vecs, dim, false);
    if (scores_too) gemm(dout, v_panel, {s.ds, kBackwardKeys}, rows, vecs, dim, false);
    if (head.dropout.threshold > 0) random_bytes(head.dropout, i, rows, tile.j, blocks, bytes);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* row_bytes = bytes + r * blocks * kBlockKeys;
      float* p = s.p + r * kBackwardKeys;
      mask.hide(p, i + r);
      if (scores_too)
        gradient_row(p, s.ds + r * kBackwardKeys, vecs, s.lse[i + r], s.delta[i + r], row_bytes,
                     head.dropout.threshold);
      else
        dropped_row(p, vecs, s.lse[i + r], row_bytes, head.dropout.threshold);
    }
    if (tile.dv)
      gemm({s.p, 1, kBackwardKeys}, {dout.data, width, kPanel}, {s.dv, width}, tile.keys, wide,
           rows, !first);
    if (tile.dk)
      gemm({s.ds, 1, kBackwardKeys}, {q.data, width, kPanel}, {s.dk, width}, tile.keys, wide, rows,
           !first);
    if (head.dq)
      gemm({s.ds, kBackwardKeys, 1}, {s.k, width, kPanel}, {s.dq + i * width, width}, rows, wide,
           tile.keys, true);
    first = false;
  }
  if (first)
    for (int64_t n = 0; n < tile.keys * width; ++n) s.dk[n] = s.dv[n] = 0;
  // q was packed with the factor scale * log2(e), which leaves ln(2) of the scale of dk.
  if (tile.dk)
    unpack_rows(s.dk, tile.keys, dim, kLn2 * head.dropout.scale, tile.dk, tile.gradient_stride);
  if (tile.dv) unpack_rows(s.dv, tile.keys, dim, head.dropout.scale, tile.dv, tile.gradient_stride);
}

void backward(const AttentionBackward& head, float* scratch) {
  const int64_t dim = head.head_dim;
  const int64_t width = padded(dim);
  const bool own = head.dq != nullptr || head.dk != nullptr || head.dv != nullptr;
  const bool prefix = head.prefix.rows > 0 && (head.dq != nullptr || head.prefix_dk != nullptr ||
                                               head.prefix_dv != nullptr);
  const bool scores_too = head.dq != nullptr || head.dk != nullptr || head.prefix_dk != nullptr;
  const BackwardScratch s(scratch, head.queries, dim);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  pack_rows(head.q, head.stride, head.queries, dim, scale * kLog2E, s.q);
  pack_rows(head.dout, head.stride, head.queries, dim, 1.0f, s.dout);
  for (int64_t i = 0; i < head.queries; ++i) {
    const float lse = head.lse[i * head.lse_stride];
    s.lse[i] = lse == -__builtin_inff() ? __builtin_inff() : lse * kLog2E;
    if (scores_too)
      s.delta[i] =
          dot(head.dout + i * head.stride, head.o + i * head.stride, dim) / head.dropout.scale;
  }
  // Every tile adds to dq, since the first one need not be one that a query sees.
  if (head.dq)
    for (int64_t n = 0; n < head.queries * width; ++n) s.dq[n] = 0;

  if (prefix)
    backward_tile(head, s,
                  {head.prefix.k, head.prefix.v, head.stride, -kPrefixKeys, head.prefix.rows,
                   head.prefix_dk, head.prefix_dv, dim});
  for (int64_t j = 0; own && j < head.keys; j += kBackwardKeys)
    backward_tile(
        head, s,
        {head.k + j * head.stride, head.v + j * head.stride, head.stride, j,
         smaller(kBackwardKeys, head.keys - j), head.dk ? head.dk + j * head.stride : nullptr,
         head.dv ? head.dv + j * head.stride : nullptr, head.stride});
  if (head.dq)
    unpack_rows(s.dq, head.queries, dim, scale * head.dropout.scale, head.dq, head.stride);
}

void exp2_of(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, exp2_nonpositive(load(x + i)));
}

}  // namespace

const AttentionSimd attention_simd = {forward_scratch, forward, backward_scratch, backward,
                                      exp2_of};

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
