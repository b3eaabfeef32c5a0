// SPDX-License-Identifier: Apache-2.0
#include "app/table.h"

#include <algorithm>
#include <cctype>

#include "app/logging.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

// Characters, not bytes: UTF-8 continuation bytes take no room.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789.,+-eE %") == std::string::npos &&
         std::any_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0; });
}

}  // namespace

void Table::add(std::vector<std::string> row) {
  require(row.size() == header_.size(), "table: a row of ", row.size(), " cells under ",
          header_.size(), " columns");
  for (std::string& cell : row) cell = printable(cell);
  rows_.push_back(std::move(row));
}

std::string Table::text() const {
  std::vector<size_t> width(header_.size());
  std::vector<bool> right(header_.size(), !rows_.empty());
  for (size_t i = 0; i < header_.size(); ++i) {
    width[i] = width_of(header_[i]);
    for (const auto& row : rows_) {
      width[i] = std::max(width[i], width_of(row[i]));
      if (!row[i].empty() && !is_number(row[i])) right[i] = false;
    }
  }
  std::string text;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string pad(width[i] - width_of(cells[i]), ' ');
      line += (i == 0 ? "" : "  ") + (right[i] ? pad + cells[i] : cells[i] + pad);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  };
  if (std::any_of(header_.begin(), header_.end(), [](const auto& cell) { return !cell.empty(); }))
    add_line(header_);
  for (const auto& row : rows_) add_line(row);
  return text;
}

}  // namespace scgraft
