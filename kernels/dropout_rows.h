// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cstdint>

#include "kernels/dropout.h"

namespace scgraft {

// Logical place of one row of a packed tensor.
struct RowPlace {
  uint32_t cell = 0;      // cell id, low 32 bits
  uint32_t position = 0;  // row inside the cell
};

// What becomes of an element: x / (probability of keeping) or 0, by its 16 random bits.
struct Keep {
  uint32_t threshold;
  float scale;
  // A mask of bits instead of a condition: compilers make vectors of it.
  float operator()(uint16_t lane, float x) const {
    const uint32_t kept = 0u - static_cast<uint32_t>(lane >= threshold);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x * scale) & kept);
  }
};

// RowDropout as an argument of a kernel (kernels/dropout_rows.cuh).
struct DeviceDropout {
  bool active = false;
  uint32_t site = 0;
  uint32_t threshold = 0;
  float scale = 1;
  PhiloxKey key{};
  PackedRows packing;
};

// Hidden dropout (kernels/dropout.h) of the rows of one tensor: checks it once, then says per
// row which features are kept. Every operation with hidden dropout asks here.
//
//   const RowDropout drop("relu_dropout", ctx, dropout, packing, rows);
//
//   drop.each(r, dim, [&](int64_t f) { return x(r, f); },           // the definition, also when
//             [&](int64_t f, T dropped) { y(r, f) = dropped; });    // nothing is dropped
//
//   const Keep keep = drop.keep();                                  // f32, when active: the same
//   drop.pieces(r, 0, dim, [&](int64_t f, int64_t n, const uint16_t* lanes) {
//     for (int64_t i = 0; i < n; ++i) y(r, f + i) = keep(lanes[i], x(r, f + i));
//   });
class RowDropout {
 public:
  // rows: of the tensor the packing describes. packing may be null when dropout is not active.
  // Throws ShapeError when the packing is missing or does not fit, ConfigError when p is not in
  // [0, 1).
  RowDropout(const char* op, Context& ctx, Dropout dropout, const Packing* packing, int64_t rows);

  bool active() const { return active_; }
  Keep keep() const { return {hidden_.threshold, hidden_.scale}; }
  // For a kernel. Throws as packed_rows() does when dropout is active.
  DeviceDropout on_device(const Context& ctx) const;

  // Calls write(f, drop(value(f))) for f in [0, dim) of one row.
  template <class Value, class Write>
  void each(int64_t row, int64_t dim, Value&& value, Write&& write) const {
    using T = decltype(value(int64_t{}));
    if (!active_) {
      for (int64_t f = 0; f < dim; ++f) write(f, value(f));
      return;
    }
    const RowPlace where = place(row);
    PhiloxCounter random{};
    for (int64_t f = 0; f < dim; ++f) {
      if (f % 8 == 0)
        random = philox({site_, where.cell, where.position, static_cast<uint32_t>(f / 8)}, key_);
      const T x = value(f);
      write(f, hidden_.keeps(random, static_cast<int>(f % 8)) ? x * T(hidden_.scale) : T(0));
    }
  }

  // Features that pieces() hands over at once at most.
  static constexpr int64_t kPiece = 512;

  // Calls use(f, n, lanes) for the pieces f .. f + n - 1 of features [begin, end) of one row;
  // lanes[i] are the random bits of feature f + i. begin is a multiple of 8. Only when active.
  template <class Use>
  void pieces(int64_t row, int64_t begin, int64_t end, Use&& use) const {
    uint16_t lanes[kPiece];
    const RowPlace where = place(row);
    for (int64_t f = begin; f < end; f += kPiece) {
      const int64_t n = end - f < kPiece ? end - f : kPiece;
      draw(where, f, n, lanes);
      use(f, n, static_cast<const uint16_t*>(lanes));
    }
  }

 private:
  // Coordinates of a row, by binary search in the packing.
  RowPlace place(int64_t row) const;
  // Random bits of n features from `feature` on; `lanes` has room for kPiece of them.
  void draw(RowPlace place, int64_t feature, int64_t n, uint16_t* lanes) const;

  const char* op_;
  bool active_;
  uint32_t site_;
  HiddenDropout hidden_;
  PhiloxKey key_;
  const Packing* packing_;
};

}  // namespace scgraft
