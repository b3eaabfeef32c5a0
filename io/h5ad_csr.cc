// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "io/h5ad_source.h"
#include "io/limits.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::Node;

// A chunk on the border of two reads is decompressed once when the cache holds it.
constexpr int64_t kCacheBytes = 16 << 20;

class CsrSource : public RowReader::Source {
 public:
  CsrSource(const Node& group, const MatrixSlot& slot)
      : data_(group.child("data").with_cache(kCacheBytes)),
        indices_(group.child("indices").with_cache(kCacheBytes)),
        indptr_(group.child("indptr")),
        columns_(slot.columns),
        stored_(slot.stored) {
    if (window(0, 0)[0] != 0)
      indptr_.fail(cat("starts with ", window(0, 0)[0], ", 0 was wanted"), "E-H5AD-INDPTR");
  }

  int64_t rows_within(int64_t first, int64_t limit, int64_t bytes) override {
    const std::vector<int64_t> starts = window(first, limit);
    const int64_t most = starts[0] + std::max<int64_t>(bytes / kEntryBytes, 1);
    const auto end = std::upper_bound(starts.begin() + 1, starts.end(), most);
    return std::max<int64_t>(end - starts.begin() - 1, 1);
  }

  void read(int64_t first, int64_t count, SparseRows& out) override {
    out.offsets = window(first, count);
    const int64_t begin = out.offsets[0];
    for (int64_t& offset : out.offsets) offset -= begin;
    const Checked bytes = Checked(out.offsets.back()) * kEntryBytes;
    if (bytes > limits::kHostBudgetBytes)
      data_.fail(
          cat("rows ", first, " to ", first + count, " need ", bytes.value(), " bytes of memory"),
          "E-SIZE", "read fewer rows at once");
    out.column.resize(static_cast<size_t>(out.offsets.back()));
    out.value.resize(static_cast<size_t>(out.offsets.back()));
    // What does not fit 32 bits arrives as the largest or smallest value and is refused below.
    indices_.read<int32_t>(begin, out.column);
    data_.read<float>(begin, out.value);
    for (int64_t r = 0; r < count; ++r)
      for (const int32_t column : out.columns_of(r))
        if (column < 0 || column >= columns_)
          indices_.fail(cat("row ", first + r, " has a value in column ", column, ", there are ",
                            columns_, " columns"),
                        "E-H5AD-INDEX", "the matrix is damaged; write the file again");
  }

 private:
  // indptr of rows [first, first + count], checked.
  std::vector<int64_t> window(int64_t first, int64_t count) {
    std::vector<int64_t> starts(static_cast<size_t>(count) + 1);
    indptr_.read<int64_t>(first, starts);
    for (size_t i = 0; i < starts.size(); ++i) {
      const int64_t row = first + static_cast<int64_t>(i);
      if (i > 0 && starts[i] < starts[i - 1])
        indptr_.fail(cat("falls from ", starts[i - 1], " to ", starts[i], " after row ", row - 1),
                     "E-H5AD-INDPTR", "the matrix is damaged; write the file again");
      if (starts[i] < 0 || starts[i] > stored_)
        indptr_.fail(cat("row ", row, " starts at value ", starts[i], ", there are ", stored_),
                     "E-H5AD-INDPTR", "the matrix is damaged; write the file again");
    }
    return starts;
  }

  Node data_, indices_, indptr_;
  int64_t columns_, stored_;
};

}  // namespace

std::unique_ptr<RowReader::Source> make_csr_source(const Node& group, const MatrixSlot& slot) {
  return std::make_unique<CsrSource>(group, slot);
}

}  // namespace scgraft
