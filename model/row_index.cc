// SPDX-License-Identifier: Apache-2.0
#include "model/row_index.h"

#include <numeric>

#include "runtime/error.h"

namespace scgraft {

void RowIndex::assign(Context& ctx, std::span<const int32_t> rows, int64_t table_rows) {
  index_.host.assign(rows.begin(), rows.end());
  std::vector<int32_t>& offsets = use_offsets_.host;
  offsets.assign(static_cast<size_t>(table_rows) + 1, 0);
  for (const int32_t row : rows) {
    require(row >= 0 && row < table_rows, "row ", row, " of a table of ", table_rows, " rows");
    ++offsets[static_cast<size_t>(row) + 1];
  }
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  use_items_.host.resize(rows.size());
  std::vector<int32_t> next(offsets.begin(), offsets.end() - 1);
  for (size_t item = 0; item < rows.size(); ++item)
    use_items_.host[static_cast<size_t>(next[static_cast<size_t>(rows[item])]++)] =
        static_cast<int32_t>(item);
  memory_.send(ctx, index_, use_offsets_, use_items_);
}

}  // namespace scgraft
