// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/config.h"

namespace scgraft {

// A typed, row-major view of rank N that host and device code index alike: x(b, s, d).
// Not checked; a view has been checked when it becomes an Array.
template <class T, int N>
class Array {
 public:
  Array() = default;
  SCGRAFT_HD Array(T* data, const std::array<int64_t, N>& dims) : data_(data) {
    for (int i = 0; i < N; ++i) dims_[i] = dims[static_cast<size_t>(i)];
  }

  template <class... I>
  SCGRAFT_HD T& operator()(I... index) const {
    static_assert(sizeof...(I) == N);
    int64_t offset = 0;
    int axis = 0;
    ((offset = offset * dims_[axis++] + static_cast<int64_t>(index)), ...);
    return data_[offset];
  }
  SCGRAFT_HD int64_t dim(int i) const { return dims_[i]; }
  SCGRAFT_HD T* data() const { return data_; }
  // Row r of a matrix.
  SCGRAFT_HD T* row(int64_t r) const requires(N == 2) { return data_ + r * dims_[1]; }

 private:
  T* data_ = nullptr;
  int64_t dims_[N > 0 ? N : 1] = {};
};

}  // namespace scgraft
