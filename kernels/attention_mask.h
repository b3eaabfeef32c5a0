// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/packing.h"
#include "runtime/error.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Which keys of its own cell a query of attention() sees: those that every rule allows which is
// given. Without any it sees all of them.
//
//   key_bits  [key_words(keys)]  i64   key j of a cell can be seen where bit j % 64 of word
//                                      first_key_word(keys, cell) + j / 64 is 1 (pack_key_bits)
//   known     [cells]  i32             the first known[cell] keys of a cell can be seen; a query
//                                      i >= known[cell] also sees key i, which is itself, and
//                                      nobody else does. Below 0 counts as 0, more than the cell
//                                      has as all of it.
//   causal                             query i sees keys j <= i
//
// key_bits and known lie on the device of the call. known and causal number queries and keys alike:
// both need the same packing. k and v of keys that nobody sees are multiplied by 0 in places, so
// they must be finite.
struct AttentionMask {
  ConstTensorView key_bits = {};
  ConstTensorView known = {};
  bool causal = false;

  bool any() const { return !key_bits.empty() || !known.empty() || causal; }
};

// Keys in front of every cell's own that all queries see, whatever the mask says; the same ones for
// all cells. Prefix key p has the dropout coordinate j = p - kPrefixRows: the counter word j / 16,
// rounded down, is 2^32 - 4 + p / 16, which no key of a cell can have.
//
//   k, v  [rows, heads * head_dim]  type of q, rows <= kPrefixRows; empty: no prefix
struct AttentionPrefix {
  ConstTensorView k = {};
  ConstTensorView v = {};

  int64_t rows() const { return k.empty() ? 0 : k.dim(0); }
};
inline constexpr int64_t kPrefixRows = 64;

// Their gradients, each empty when it is not wanted.
//
//   k, v  [rows, heads * head_dim]  type of q, f32 for 16-bit types; accumulated (+=)
struct AttentionPrefixGradient {
  TensorView k = {};
  TensorView v = {};

  bool wanted() const { return !k.empty() || !v.empty(); }
};

// Words of AttentionMask::key_bits: every cell begins with a word of its own.
inline int64_t first_key_word(const Packing& keys, int64_t cell) {
  return keys.begin(cell) / 64 + cell;
}
inline int64_t key_words(const Packing& keys) { return keys.tokens() / 64 + keys.cells(); }

// The words in which bits are set for the keys [tokens] that `visible` marks with something other
// than 0. Throws ShapeError when it has not one element per token.
inline std::vector<int64_t> pack_key_bits(const Packing& keys, std::span<const uint8_t> visible) {
  require(static_cast<int64_t>(visible.size()) == keys.tokens(), "pack_key_bits: got ",
          visible.size(), " marks for ", keys.tokens(), " keys");
  std::vector<uint64_t> bits(static_cast<size_t>(key_words(keys)), 0);
  for (int64_t cell = 0; cell < keys.cells(); ++cell)
    for (int64_t j = 0; j < keys.length(cell); ++j)
      if (visible[static_cast<size_t>(keys.begin(cell) + j)] != 0)
        bits[static_cast<size_t>(first_key_word(keys, cell) + j / 64)] |= uint64_t{1} << (j % 64);
  return {bits.begin(), bits.end()};
}

}  // namespace scgraft
