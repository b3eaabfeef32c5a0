// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <compare>
#include <cstdint>
#include <memory>

#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/gpu/types.h"

namespace scgraft::gpu {

// y [rows, n] = x [rows, k] w^T (+ bias) (+ c), all row-major.
struct LibraryProduct {
  DType type = DType::f32;    // of x and w: f32, bf16 or f16. Sums are f32
  DType result = DType::f32;  // of y, bias and c: `type` or f32
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t x_step = 0;  // elements from row to row of x and w; y and c are dense
  int64_t w_step = 0;
  bool w_turned = false;  // w is [k, n] and multiplied as it is, else [n, k]
  bool bias = false;
  bool aligned = false;  // y and c begin at 16-byte boundaries, as x and w always do

  auto operator<=>(const LibraryProduct&) const = default;
};

// Products by cuBLASLt on one device. The library chooses an algorithm once for each product that
// differs in anything above, and keeps to it; it never splits a sum over k and never measures. Its
// choice may depend on the number of rows, and so may the last bits of a row: the promises of
// docs/decisions/0010-determinism.md hold for equal shapes only. Not thread-safe.
class LibraryProducts {
 public:
  // Throws DeviceError (E-LIBRARY) when the library is not there or does not start on the device.
  explicit LibraryProducts(Device device);
  ~LibraryProducts();
  LibraryProducts(const LibraryProducts&) = delete;
  LibraryProducts& operator=(const LibraryProducts&) = delete;

  // Of the workspace that multiply() is given: the same for every product, so that no step needs
  // more than the one that was rehearsed.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  struct Operands {
    const void* x;
    const void* w;
    const void* bias;  // null without one
    const void* c;     // may be y; null without one
    void* y;
    void* workspace;  // kWorkspaceBytes, aligned to 256 bytes
  };
  // Enqueues the product. Throws DeviceError (E-LIBRARY) when the library has no algorithm for it
  // or refuses it.
  void multiply(const LibraryProduct& product, const Operands& operands, StreamHandle stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::shared_ptr<LibraryProducts> make_library_products(Device device);

}  // namespace scgraft::gpu
