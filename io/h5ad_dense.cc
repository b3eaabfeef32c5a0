// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "io/h5ad_source.h"
#include "io/limits.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::Node;

class DenseSource : public RowReader::Source {
 public:
  DenseSource(const Node& dataset, const MatrixSlot& slot, int64_t bytes)
      : dataset_(dataset), columns_(slot.columns) {
    const int64_t row_bytes = std::max<int64_t>(columns_ * static_cast<int64_t>(sizeof(float)), 1);
    block_rows_ = std::max<int64_t>(bytes / row_bytes, 1);
    // Blocks that end where storage chunks end are decompressed once; a cache of one row of chunks
    // covers the reads that do not.
    if (const int64_t rows = dataset.chunk_rows(); rows > 0) {
      if (block_rows_ > rows) block_rows_ -= block_rows_ % rows;
      const Checked cache = Checked(rows) * columns_ * dataset.type().bytes;
      dataset_ = dataset.with_cache(std::clamp<int64_t>(cache.value(), 1 << 20, 256 << 20));
    }
  }

  int64_t rows_within(int64_t first, int64_t limit, int64_t) override {
    if (limit <= block_rows_) return limit;
    // Back onto the grid of blocks after a read that left it.
    return block_rows_ - first % block_rows_;
  }

  void read(int64_t first, int64_t count, SparseRows& out) override {
    out.offsets.assign(1, 0);
    out.column.clear();
    out.value.clear();
    for (int64_t done = 0; done < count;) {
      const int64_t rows = std::min(count - done, block_rows_ - (first + done) % block_rows_);
      block_.resize(static_cast<size_t>(rows * columns_));
      dataset_.read_rows<float>(first + done, rows, block_);
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = block_.data() + r * columns_;
        for (int64_t c = 0; c < columns_; ++c) {
          if (row[c] == 0) continue;
          out.column.push_back(static_cast<int32_t>(c));
          out.value.push_back(row[c]);
        }
        out.offsets.push_back(static_cast<int64_t>(out.column.size()));
      }
      done += rows;
      if (Checked(out.column.size()) * kEntryBytes > limits::kHostBudgetBytes)
        dataset_.fail(cat("rows ", first, " to ", first + count, " need more than ",
                          limits::kHostBudgetBytes, " bytes of memory"),
                      "E-SIZE", "read fewer rows at once");
    }
  }

 private:
  Node dataset_;
  int64_t columns_;
  int64_t block_rows_ = 1;
  std::vector<float> block_;
};

}  // namespace

std::unique_ptr<RowReader::Source> make_dense_source(const Node& dataset, const MatrixSlot& slot,
                                                     int64_t bytes) {
  return std::make_unique<DenseSource>(dataset, slot, bytes);
}

}  // namespace scgraft
