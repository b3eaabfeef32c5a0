// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

namespace scgraft {

// A plain text table: columns two spaces apart, numbers to the right, no lines drawn.
//
//   Table table({"class", "cells", "F1"});
//   table.add({"B cell", "95", "0.97"});
//   session.print(table.text());
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  // As many cells as the header has; ShapeError otherwise.
  void add(std::vector<std::string> row);
  // Empty header cells only: no header line. Control characters are escaped.
  std::string text() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace scgraft
