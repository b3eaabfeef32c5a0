// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "io/h5ad_source.h"
#include "io/limits.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::Node;

constexpr int64_t kPiece = 1 << 20;  // values read at once during a scan

class CscSource : public RowReader::Source {
 public:
  CscSource(const Node& group, const MatrixSlot& slot, int64_t bytes)
      : data_(group.child("data")),
        indices_(group.child("indices")),
        indptr_(group.child("indptr")),
        rows_(slot.rows),
        stored_(slot.stored),
        capacity_(std::max<int64_t>(bytes / kEntryBytes, 1)),
        starts_(indptr_.read_all<int64_t>()) {
    kept_.offsets.assign(1, 0);
    check_starts();
    count_rows();
  }

  int64_t rows_within(int64_t first, int64_t limit, int64_t bytes) override {
    const int64_t most = std::max<int64_t>(bytes / kEntryBytes, 1);
    int64_t rows = 0, entries = 0;
    while (rows < limit && (rows == 0 || entries + count_[at(first + rows)] <= most))
      entries += count_[at(first + rows++)];
    return rows;
  }

  void read(int64_t first, int64_t count, SparseRows& out) override {
    out.offsets.assign(1, 0);
    out.column.clear();
    out.value.clear();
    for (int64_t row = first; row < first + count;) {
      if (row < kept_.first_row || row >= kept_.first_row + kept_.rows()) keep_from(row);
      const int64_t end = std::min(first + count, kept_.first_row + kept_.rows());
      for (; row < end; ++row) {
        const auto columns = kept_.columns_of(row - kept_.first_row);
        const auto values = kept_.values_of(row - kept_.first_row);
        out.column.insert(out.column.end(), columns.begin(), columns.end());
        out.value.insert(out.value.end(), values.begin(), values.end());
        out.offsets.push_back(static_cast<int64_t>(out.column.size()));
      }
      if (Checked(out.column.size()) * kEntryBytes > limits::kHostBudgetBytes)
        data_.fail(cat("rows ", first, " to ", first + count, " need more than ",
                       limits::kHostBudgetBytes, " bytes of memory"),
                   "E-SIZE", "read fewer rows at once");
    }
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  void check_starts() {
    if (starts_[0] != 0)
      indptr_.fail(cat("starts with ", starts_[0], ", 0 was wanted"), "E-H5AD-INDPTR");
    for (size_t i = 1; i < starts_.size(); ++i)
      if (starts_[i] < starts_[i - 1] || starts_[i] > stored_)
        indptr_.fail(cat("column ", i - 1, " reaches from value ", starts_[i - 1], " to ",
                         starts_[i], ", there are ", stored_),
                     "E-H5AD-INDPTR", "the matrix is damaged; write the file again");
  }

  // First scan: how many values each row has.
  void count_rows() {
    const Checked bytes = Checked(rows_) * sizeof(int64_t);
    if (bytes > limits::kHostBudgetBytes)
      indices_.fail(cat("a column-wise matrix of ", rows_, " rows needs ", bytes.value(),
                        " bytes of memory to be read by rows"),
                    "E-SIZE", "write the matrix by rows: adata.X = adata.X.tocsr()");
    count_.assign(at(rows_), 0);
    scan([&](int64_t row, int32_t, int64_t) { ++count_[at(row)]; }, false);
  }

  // Later scans: keeps as many rows from `first` as the capacity allows.
  void keep_from(int64_t first) {
    int64_t rows = 0, entries = 0;
    while (first + rows < rows_ && (rows == 0 || entries + count_[at(first + rows)] <= capacity_))
      entries += count_[at(first + rows++)];
    if (Checked(entries) * kEntryBytes > limits::kHostBudgetBytes)
      data_.fail(cat("row ", first, " alone has ", entries, " values"), "E-SIZE");
    kept_.first_row = first;
    kept_.offsets.assign(1, 0);
    for (int64_t r = 0; r < rows; ++r)
      kept_.offsets.push_back(kept_.offsets.back() + count_[at(first + r)]);
    kept_.column.resize(at(entries));
    kept_.value.resize(at(entries));
    std::vector<int64_t> fill(kept_.offsets.begin(), kept_.offsets.end() - 1);
    scan(
        [&](int64_t row, int32_t column, int64_t piece_at) {
          if (row < first || row >= first + rows) return;
          const int64_t k = fill[at(row - first)]++;
          kept_.column[at(k)] = column;
          kept_.value[at(k)] = values_[at(piece_at)];
        },
        true);
  }

  // Calls use(row, column, index into values_) for every stored value, by ascending column.
  template <class Use>
  void scan(Use&& use, bool with_values) {
    const int64_t end = starts_.back();
    int64_t column = 0;
    for (int64_t first = 0; first < end; first += kPiece) {
      const int64_t count = std::min(kPiece, end - first);
      piece_.resize(at(count));
      indices_.read<int64_t>(first, piece_);
      if (with_values) {
        values_.resize(at(count));
        data_.read<float>(first, values_);
      }
      for (int64_t i = 0; i < count; ++i) {
        while (starts_[at(column) + 1] <= first + i) ++column;
        const int64_t row = piece_[at(i)];
        if (row < 0 || row >= rows_)
          indices_.fail(
              cat("column ", column, " has a value in row ", row, ", there are ", rows_, " rows"),
              "E-H5AD-INDEX", "the matrix is damaged; write the file again");
        use(row, static_cast<int32_t>(column), i);
      }
    }
  }

  Node data_, indices_, indptr_;
  int64_t rows_, stored_, capacity_;
  std::vector<int64_t> starts_;
  std::vector<int64_t> count_;
  SparseRows kept_;  // rows of the latest scan
  std::vector<int64_t> piece_;
  std::vector<float> values_;
};

}  // namespace

std::unique_ptr<RowReader::Source> make_csc_source(const Node& group, const MatrixSlot& slot,
                                                   int64_t bytes) {
  return std::make_unique<CscSource>(group, slot, bytes);
}

}  // namespace scgraft
