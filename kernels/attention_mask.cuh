// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/attention_device.cuh"
#include "kernels/attention_mask.h"
#include "runtime/gpu/gpu.cuh"

// Who sees whom, by tiles: AttentionMask and AttentionPrefix as kernels ask for them. Keys of a
// cell have the numbers from 0 on, those of the prefix from -kPrefixRows on, so that the prefix is
// the tile in front of the first one.
namespace scgraft::cuda {

// Bits below n, and bit n alone; n may be any number.
inline __device__ uint64_t bits_below(int n) {
  return n <= 0 ? 0 : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}
inline __device__ uint64_t bit_alone(int n) { return n < 0 || n >= 64 ? 0 : uint64_t{1} << n; }

// Rows of two tensors, from `begin` on; there are `rows` in all.
template <class T>
struct RowPair {
  const T *first, *second;  // row 0 of one head
  int begin, rows;
};

// Keys and values from the number of a key on.
template <class T>
__device__ RowPair<T> key_rows(const AttentionProblem& p, const AttentionBlock& b, const T* k,
                               const T* v, const T* prefix_k, const T* prefix_v, int key) {
  const bool own = key >= 0;
  const int64_t at = (own ? b.first_key * p.stride() : 0) + b.head * p.head_dim;
  return {(own ? k : prefix_k) + at, (own ? v : prefix_v) + at,
          own ? key : key + static_cast<int>(kPrefixRows), own ? b.keys : p.prefix_rows};
}

// Key bits from key on; those behind the word of the key are 0. The key must be of the cell.
inline __device__ uint64_t key_bits(const AttentionProblem& p, const AttentionBlock& b, int key) {
  if (p.key_bits == nullptr) return ~uint64_t{0};
  return static_cast<uint64_t>(p.key_bits[b.first_word + key / 64]) >> (key % 64);
}

// False: none of the queries [query, query + queries) sees any of the keys [key, key + keys), which
// are of the prefix or of the cell. Does not look at key bits.
inline __device__ bool may_see(const AttentionProblem& p, const AttentionBlock& b, int key,
                               int keys, int query, int queries) {
  if (key < 0) return key + static_cast<int>(kPrefixRows) < p.prefix_rows;
  if (!p.masked) return true;
  if (p.causal && key >= query + queries) return false;
  return key < b.known || p.known == nullptr || (key < query + queries && query < key + keys);
}

// The number of the first key that a query can see, if there is any.
inline __device__ int first_key(const AttentionProblem& p) {
  return p.prefix_rows > 0 ? -static_cast<int>(kPrefixRows) : 0;
}

// The first tile of kKeys keys from `key` on in which one of the queries may see something;
// b.keys or more: none. kKeys divides 64, and key is a multiple of it.
template <int kKeys>
__device__ int next_key_tile(const AttentionProblem& p, const AttentionBlock& b, int key, int query,
                             int queries) {
  for (; key < b.keys; key += kKeys)
    if (may_see(p, b, key, kKeys, query, queries) &&
        (key < 0 || (key_bits(p, b, key) & bits_below(kKeys)) != 0))
      break;
  return key;
}

// Whether every query from `query` on sees all of the keys [key, key + keys), which are at most 64
// and all in one word.
inline __device__ bool all_seen(const AttentionProblem& p, const AttentionBlock& b, int key,
                                int keys, int query) {
  if (key < 0) return key + keys + static_cast<int>(kPrefixRows) <= p.prefix_rows;
  if (key + keys > b.known) return false;
  if (!p.masked) return true;
  if (p.causal && key + keys > query + 1) return false;
  return (~key_bits(p, b, key) & bits_below(keys)) == 0;
}

// Bit l: whether the query sees key + l.
inline __device__ uint64_t keys_seen(const AttentionProblem& p, const AttentionBlock& b, int key,
                                     int query) {
  if (key < 0) return bits_below(p.prefix_rows - static_cast<int>(kPrefixRows) - key);
  uint64_t seen = bits_below(b.known - key);
  if (p.masked) {
    if (p.known != nullptr) seen |= bit_alone(query - key);
    if (p.causal) seen &= bits_below(query + 1 - key);
    seen &= key_bits(p, b, key);
  }
  return seen;
}

// The same from the side of keys that a thread owns: key, key + kStep, ... kCount of them, each of
// the prefix, of the cell or behind its end. What does not depend on queries is one register.
template <int kCount, int kStep>
struct OwnKeys {
  static constexpr uint32_t kOpen = (1u << kCount) - 1;  // bit i: some query may see key i
  static constexpr uint32_t kKnown = kOpen << kCount;    // and others than itself may

  int key;
  uint32_t bits = kOpen | kKnown;

  __device__ OwnKeys(const AttentionProblem& p, const AttentionBlock& b, int first) : key(first) {
    if (!p.masked || key < 0) return;
    UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int at = key + kStep * i;
      if (at >= b.keys || (key_bits(p, b, at) & 1) == 0) bits &= ~(1u << i);
      if (at >= b.known) bits &= ~(1u << (kCount + i));
    }
  }
  // Whether every query from `query` on sees all of the keys.
  __device__ bool all_seen(const AttentionProblem& p, int query) const {
    return bits == (kOpen | kKnown) && !(p.causal && key + kStep * (kCount - 1) > query);
  }
  // Bit l: whether query + l, l < 32, sees key i.
  __device__ uint32_t seen_by(const AttentionProblem& p, int i, int query) const {
    if ((bits >> i & 1) == 0) return 0;
    const int ahead = key + kStep * i - query;
    uint32_t seen = ~0u;
    if ((bits >> (kCount + i) & 1) == 0) seen = static_cast<uint32_t>(bit_alone(ahead));
    if (p.causal) seen &= ~static_cast<uint32_t>(bits_below(ahead));
    return seen;
  }
};

}  // namespace scgraft::cuda
