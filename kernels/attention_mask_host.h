// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/attention_mask.h"
#include "kernels/require_tensor.h"
#include "runtime/context.h"

// What attention.cc and attention_export.cc ask of an AttentionMask: whether it fits, and who sees
// whom by the definition.
namespace scgraft {

// Throws ShapeError, TypeError or DeviceError when the mask does not fit packings of equal cell
// count.
inline void require_mask(const char* op, const Context& ctx, const AttentionMask& mask,
                         const Packing& queries, const Packing& keys) {
  ctx.require_here(op, mask.key_bits, mask.known);
  require_optional(op, "key_bits", mask.key_bits, {key_words(keys)}, DType::i64);
  require_optional(op, "known", mask.known, {keys.cells()}, DType::i32);
  if (mask.causal || !mask.known.empty())
    require(std::ranges::equal(queries.offsets, keys.offsets), op, ": a mask of ",
            mask.causal ? "causal order" : "known keys",
            " needs as many queries as keys in every cell, got ", queries.tokens(), " queries and ",
            keys.tokens(), " keys packed differently");
}

// Whether query i of a cell sees key j of it. The mask is in host memory.
inline bool sees(const AttentionMask& mask, const Packing& keys, int64_t cell, int64_t i,
                 int64_t j) {
  if (mask.causal && j > i) return false;
  if (!mask.known.empty() && j >= mask.known.as<int32_t>()[cell] && j != i) return false;
  if (mask.key_bits.empty()) return true;
  const int64_t word = first_key_word(keys, cell) + j / 64;
  return (mask.key_bits.as<int64_t>()[word] >> (j % 64) & 1) != 0;
}

}  // namespace scgraft
