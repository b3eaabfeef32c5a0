// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_rows.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "io/h5ad_source.h"
#include "io/limits.h"
#include "io/text.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

bool is_ascending(std::span<const int32_t> columns) {
  return std::adjacent_find(columns.begin(), columns.end(), std::greater_equal<>()) ==
         columns.end();
}

// Sorts the columns of every row and sums repeated ones, in place. Equal columns keep the order of
// the file, so the sum is the same however the rows were cut into chunks.
void canonicalise(SparseRows& rows) {
  int64_t end = 0;  // entries kept so far
  int64_t begin = 0;
  std::vector<std::pair<int32_t, float>> entries;
  for (int64_t r = 0; r < rows.rows(); ++r) {
    const int64_t next = rows.offsets[static_cast<size_t>(r) + 1];
    entries.clear();
    for (int64_t k = begin; k < next; ++k)
      entries.emplace_back(rows.column[static_cast<size_t>(k)], rows.value[static_cast<size_t>(k)]);
    std::stable_sort(entries.begin(), entries.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t k = 0; k < entries.size();) {
      double sum = 0;
      const int32_t column = entries[k].first;
      for (; k < entries.size() && entries[k].first == column; ++k) sum += entries[k].second;
      rows.column[static_cast<size_t>(end)] = column;
      rows.value[static_cast<size_t>(end)] = static_cast<float>(sum);
      ++end;
    }
    begin = next;
    rows.offsets[static_cast<size_t>(r) + 1] = end;
  }
  rows.column.resize(static_cast<size_t>(end));
  rows.value.resize(static_cast<size_t>(end));
}

std::unique_ptr<RowReader::Source> make_source(const H5ad& file, const MatrixSlot& slot,
                                               int64_t bytes) {
  if (slot.format == MatrixFormat::none) {
    DataError error(
        cat(escaped(file.path()), ": ", escaped(slot.path), " holds no matrix that can be read (",
            slot.dtype.empty() ? "it is absent" : cat("found: ", slot.dtype), ")"),
        "E-H5AD-MISSING");
    error.set_hint("choose another slot: raw or the name of a layer");
    error.set_where(file.path(), slot.path);
    throw error;
  }
  const hdf5::Node node = file.root().child(slot.path);
  switch (slot.format) {
    case MatrixFormat::csr:
      return make_csr_source(node, slot);
    case MatrixFormat::csc:
      return make_csc_source(node, slot, Checked(bytes).value() * 4);
    default:
      return make_dense_source(node, slot, bytes);
  }
}

}  // namespace

RowReader::RowReader(const H5ad& file, const std::string& slot, RowReaderOptions options)
    : slot_(file.slot(slot)),
      options_(options),
      source_(make_source(file, slot_, options.chunk_bytes)) {}
RowReader::~RowReader() = default;
RowReader::RowReader(RowReader&&) noexcept = default;

void RowReader::read(int64_t first, int64_t count, SparseRows& out) {
  if (first < 0 || count < 0 || first > rows() || count > rows() - first)
    throw ShapeError(
        cat("rows ", first, " to ", first + count, " were wanted, ", slot_.path, " has ", rows()));
  out.first_row = first;
  out.columns = columns();
  source_->read(first, count, out);
  for (int64_t r = 0; r < count; ++r)
    if (!is_ascending(out.columns_of(r))) {
      canonicalise(out);
      return;
    }
}

bool RowReader::next(SparseRows& out) {
  if (next_row_ >= rows()) return false;
  const int64_t limit = std::min(std::max<int64_t>(options_.chunk_rows, 1), rows() - next_row_);
  const int64_t count = source_->rows_within(next_row_, limit, options_.chunk_bytes);
  read(next_row_, count, out);
  next_row_ += count;
  return true;
}

}  // namespace scgraft
