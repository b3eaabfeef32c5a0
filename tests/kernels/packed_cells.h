// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/random.h"
#include "tests/testing/op_test.h"

namespace scgraft {

// Sizes at which loops over panels, lanes and Philox blocks have edges.
inline const std::vector<int64_t> kAwkwardRows = {0, 1, 2, 3, 31, 33, 257};
inline const std::vector<int64_t> kAwkwardDims = {1, 7, 8, 32, 33, 512, 521};

// Every pair of those, and a few rows of each width at which kernels cut rows another way.
inline std::vector<std::pair<int64_t, int64_t>> awkward_shapes() {
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (int64_t rows : kAwkwardRows)
    for (int64_t dim : kAwkwardDims) shapes.emplace_back(rows, dim);
  for (int64_t dim : {264, 520, 1024, 1160, 1536, 1544}) shapes.emplace_back(3, dim);
  return shapes;
}

// The packing of numbers that outlive the test, on the device of its mode.
inline Packing packing_over(std::span<const int32_t> offsets, std::span<const int64_t> ids = {}) {
  if (test_device().is_cpu()) return Packing::over(offsets, ids);
  Context ctx(test_device());
  const auto packing = std::make_shared<DevicePacking>(ctx, Packing::over(offsets, ids));
  ctx.synchronize();
  keep_for_test(packing);
  return packing->packing();
}

// Owns the numbers of a packing.
struct PackedCells {
  std::vector<int32_t> offsets = {0};
  std::vector<int64_t> ids;

  PackedCells() = default;
  PackedCells(const std::vector<int32_t>& lengths, std::vector<int64_t> cell_ids)
      : ids(std::move(cell_ids)) {
    for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
  }
  Packing packing() const { return packing_over(offsets, ids); }
  int64_t rows() const { return offsets.back(); }
};

// Cells of 0, 1, 2, 65 and 64 rows and a last one with what is left.
inline PackedCells awkward_cells(int64_t rows) {
  std::vector<int32_t> lengths;
  std::vector<int64_t> ids;
  auto left = static_cast<int32_t>(rows);
  for (int32_t length : {0, 1, 2, 65, 0, 64}) {
    lengths.push_back(std::min(length, left));
    left -= lengths.back();
  }
  lengths.push_back(left);
  for (size_t i = 0; i < lengths.size(); ++i) ids.push_back(static_cast<int64_t>(1000 + 7 * i));
  return {lengths, ids};
}

// Standard normal values times scale, reproducible by `which`.
inline Tensor random_values(Shape shape, DType dtype, uint32_t which, double scale = 1.0) {
  RandomStream stream(31, RandomUse::initialise, which);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  // Through f32, so that f32 and f64 tensors hold the same numbers.
  for (double& v : values) v = static_cast<double>(static_cast<float>(scale * stream.normal()));
  return tensor_of(shape, dtype, values);
}

// What hidden dropout multiplies each element [rows, dim] with, as kernels/dropout.h words it.
inline std::vector<double> hidden_mask(Context& ctx, Dropout dropout, const PackedCells& cells,
                                       int64_t dim) {
  std::vector<double> mask;
  const auto threshold = static_cast<uint32_t>(dropout.p * 65536.0f + 0.5f);
  const double scale = double{65536.0f / (65536.0f - static_cast<float>(threshold))};
  for (size_t cell = 0; cell + 1 < cells.offsets.size(); ++cell)
    for (int32_t row = 0; row < cells.offsets[cell + 1] - cells.offsets[cell]; ++row)
      for (int64_t f = 0; f < dim; ++f) {
        const PhiloxCounter words =
            philox({dropout.site, static_cast<uint32_t>(cells.ids[cell]),
                    static_cast<uint32_t>(row), static_cast<uint32_t>(f / 8)},
                   dropout_key(ctx.random()));
        const uint32_t word = words[static_cast<size_t>(f % 8 / 2)];
        const uint32_t lane = f % 2 == 0 ? word & 0xffffu : word >> 16;
        mask.push_back(lane >= threshold ? scale : 0.0);
      }
  return mask;
}

// Element by element product.
inline std::vector<double> product(std::vector<double> a, const std::vector<double>& b) {
  require(a.size() == b.size(), "product: ", a.size(), " and ", b.size(), " elements");
  for (size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
  return a;
}

// Contexts that must agree: the fast path, the definition (on the CPU: on_host() brings it what a
// mode has elsewhere), and the fast path on other threads.
inline Context fast_context(int threads = 2) {
  return Context(test_device(), {.threads = threads});
}
inline Context reference_context() {
  return Context(Device::cpu(), {.threads = 1, .reference = true});
}

}  // namespace scgraft
