// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "kernels/attention_device.cuh"
#include "kernels/attention_mask.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/gpu/driver.h"
#include "runtime/tensor_view.h"

// The host side of attention.cu and attention_backward.cu: what a call looks like to its kernels,
// and which kernel runs it.
namespace scgraft::cuda {

inline constexpr int kLargestHeadDim = 128;

// Lengths of a call, for the size of its grid.
class AttentionSizes {
 public:
  AttentionSizes(const Packing& queries, const Packing& keys, int64_t heads)
      : units_(keys.cells() * heads) {
    for (int64_t cell = 0; cell < keys.cells(); ++cell) {
      longest_queries_ = std::max(longest_queries_, queries.length(cell));
      longest_keys_ = std::max(longest_keys_, keys.length(cell));
    }
  }
  // Cells of any length get the blocks of the longest; those without work end at once.
  int32_t query_tiles(int rows) const { return tiles(longest_queries_, rows); }
  int32_t key_tiles(int rows) const { return tiles(longest_keys_, rows); }
  gpu::Grid grid(const AttentionProblem& p) const { return {.x = units_ * p.tiles}; }

 private:
  static int32_t tiles(int64_t length, int rows) {
    return static_cast<int32_t>((length + rows - 1) / rows);
  }

  int64_t units_;
  int64_t longest_queries_ = 0;
  int64_t longest_keys_ = 0;
};

// `rows` are the tensors that are read or written four or more elements at a time where they allow
// it. Throws ShapeError when a head is too wide, as packed_rows() does for the packings.
inline AttentionProblem attention_problem(const char* op, const Context& ctx,
                                          const Packing& queries, const Packing& keys,
                                          int64_t heads, int64_t head_dim, Dropout dropout,
                                          RandomState random, const AttentionMask& mask,
                                          const AttentionPrefix& prefix,
                                          std::initializer_list<ConstTensorView> rows) {
  require(head_dim <= kLargestHeadDim, op, ": heads on ", ctx.device(), " are at most ",
          kLargestHeadDim, " wide, got ", head_dim);
  const AttentionDropout rate(dropout.p);
  const PhiloxKey key = dropout_key(random);
  AttentionProblem p{};
  p.queries = packed_rows(op, ctx, queries);
  p.keys = packed_rows(op, ctx, keys);
  p.heads = heads;
  p.head_dim = static_cast<int32_t>(head_dim);
  p.scale = 1 / std::sqrt(static_cast<float>(head_dim));
  p.threshold = dropout.active() ? rate.threshold : 0;
  p.kept = dropout.active() ? rate.scale : 1;
  p.site = dropout.site;
  p.key[0] = key[0];
  p.key[1] = key[1];
  if (!mask.key_bits.empty()) p.key_bits = mask.key_bits.as<int64_t>();
  if (!mask.known.empty()) p.known = mask.known.as<int32_t>();
  p.causal = mask.causal;
  p.masked = mask.any();
  p.prefix_rows = static_cast<int32_t>(prefix.rows());
  p.aligned = true;
  for (const ConstTensorView& view : rows)
    p.aligned = p.aligned && reinterpret_cast<uintptr_t>(view.data()) % 16 == 0;
  return p;
}

// Bytes of dynamic shared memory behind a struct that carves its tiles.
template <class Shared>
int64_t shared_bytes() {
  gpu::SharedCarver carve(nullptr);
  const Shared shared(carve);
  static_cast<void>(shared);
  return carve.used();
}

// What kernels are instances of, as values for typed lambdas.
template <int kDim>
struct Rows {};
template <int kDim, bool kSm80>
struct Fragments {};

// Calls `fragments` with the width that covers head_dim when tensor cores can be used, else `rows`.
// kDim of both is head_dim or, where zeros fill up, more. Before sm_80 tensor cores know f16 only,
// and the tiles of the widest heads do not fit into shared memory in the backward pass.
template <class T, class OnFragments, class OnRows>
void visit_attention_kernel(const Context& ctx, const AttentionProblem& p, OnFragments&& fragments,
                            OnRows&& rows) {
  if constexpr (sizeof(T) == 2) {
    const bool sm80 = gpu::compute_capability(ctx.device()) >= 80;
    if (p.aligned && p.head_dim % 8 == 0) {
      if (sm80) {
        if (p.head_dim <= 32) return fragments(Fragments<32, true>{});
        if (p.head_dim <= 64) return fragments(Fragments<64, true>{});
        if (p.head_dim <= 96) return fragments(Fragments<96, true>{});
        return fragments(Fragments<128, true>{});
      }
      if constexpr (DTypeOf<T>::value == DType::f16) {
        if (p.head_dim <= 32) return fragments(Fragments<32, false>{});
        if (p.head_dim <= 64) return fragments(Fragments<64, false>{});
        if (p.head_dim <= 96) return fragments(Fragments<96, false>{});
      }
    }
  }
  if constexpr (sizeof(T) == 4) {
    if (p.head_dim <= 32) return rows(Rows<32>{});
    if (p.head_dim <= 64) return rows(Rows<64>{});
  }
  // The only one for 16-bit types: for widths without tensor cores, and bf16 before sm_80.
  rows(Rows<128>{});
}

// Calls f with the storage type.
template <class F>
void visit_attention(DType dtype, F&& f) {
  if (dtype == DType::f32) return f(Type<float>{});
  if (dtype == DType::bf16) return f(Type<bf16>{});
  if (dtype == DType::f16) return f(Type<f16>{});
  throw TypeError(cat("attention: computes on f32, bf16 or f16, got ", dtype));
}

}  // namespace scgraft::cuda
