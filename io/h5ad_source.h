// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>

#include "io/h5ad_rows.h"
#include "io/hdf5.h"
#include "io/matrix.h"

namespace scgraft {

// How one storage format delivers rows. `out` has its offsets, columns and values overwritten; the
// reader fills in the rest and puts the rows into canonical order.
class RowReader::Source {
 public:
  virtual ~Source() = default;
  // How many of the `limit` rows from `first` fit into `bytes`; at least one.
  virtual int64_t rows_within(int64_t first, int64_t limit, int64_t bytes) = 0;
  virtual void read(int64_t first, int64_t count, SparseRows& out) = 0;
};

// Bytes of one stored value in SparseRows.
inline constexpr int64_t kEntryBytes = sizeof(int32_t) + sizeof(float);

std::unique_ptr<RowReader::Source> make_csr_source(const hdf5::Node& group, const MatrixSlot& slot);
// bytes: memory for the rows kept from one scan.
std::unique_ptr<RowReader::Source> make_csc_source(const hdf5::Node& group, const MatrixSlot& slot,
                                                   int64_t bytes);
std::unique_ptr<RowReader::Source> make_dense_source(const hdf5::Node& dataset,
                                                     const MatrixSlot& slot, int64_t bytes);

}  // namespace scgraft
