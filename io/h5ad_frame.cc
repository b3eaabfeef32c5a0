// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_frame.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <type_traits>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::ElementKind;
using hdf5::Node;

std::string text_of(int64_t value) { return std::to_string(value); }
std::string text_of(uint8_t value) { return value ? "True" : "False"; }

// Shortest text that reads back as the same number; whole numbers keep ".0" as in Python.
std::string text_of(double value) {
  if (std::isnan(value)) return "nan";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

Strings texts_of(const Node& node) {
  Strings texts;
  switch (node.type().kind) {
    case ElementKind::string:
      return node.read_strings();
    case ElementKind::integer:
      for (const int64_t v : node.read_all<int64_t>()) texts.push_back(text_of(v));
      return texts;
    case ElementKind::real:
      for (const double v : node.read_all<double>()) texts.push_back(text_of(v));
      return texts;
    case ElementKind::boolean:
      for (const uint8_t v : node.read_all<uint8_t>()) texts.push_back(text_of(v));
      return texts;
    default:
      node.fail(cat("texts or numbers were wanted, this holds ", node.type().name(), " values"),
                "E-H5AD-LAYOUT");
  }
}

ColumnKind kind_of(const Node& dataset) {
  switch (dataset.type().kind) {
    case ElementKind::string:
      return ColumnKind::string;
    case ElementKind::integer:
      return ColumnKind::integer;
    case ElementKind::real:
      return ColumnKind::real;
    case ElementKind::boolean:
      return ColumnKind::boolean;
    default:
      return ColumnKind::other;
  }
}

// The two ways a group can be a column; the encoding attribute says the same.
bool is_categorical(const Node& node) {
  return node.is_group() && node.has("codes") && node.has("categories");
}
bool is_nullable(const Node& node) {
  return node.is_group() && node.has("values") && node.has("mask");
}

std::string list_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 20;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i > 0 ? ", " : "") + escaped(names[i], 60);
  if (names.size() > kShown) text += cat(", ... (", names.size(), " in all)");
  return text.empty() ? "none" : text;
}

// Distinct values in ascending order become the categories.
template <class T, class Text>
Categorical distinct(const std::vector<T>& values, const Column& column, Text&& text) {
  std::map<T, int32_t> codes;
  const auto skip = [&](size_t i) {
    if constexpr (std::is_same_v<T, double>)
      if (std::isnan(values[i])) return true;
    return column.is_missing(static_cast<int64_t>(i));
  };
  for (size_t i = 0; i < values.size(); ++i)
    if (!skip(i)) codes.emplace(values[i], 0);
  Categorical result;
  for (auto& [value, code] : codes) {
    code = static_cast<int32_t>(result.categories.size());
    result.categories.push_back(text(value));
  }
  for (size_t i = 0; i < values.size(); ++i)
    result.codes.push_back(skip(i) ? -1 : codes.at(values[i]));
  return result;
}

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

}  // namespace

int64_t Column::size() const {
  const size_t n = std::visit(Overloaded{[](const Categorical& v) { return v.codes.size(); },
                                         [](const Booleans& v) { return v.values.size(); },
                                         [](const auto& v) { return v.size(); }},
                              values);
  return static_cast<int64_t>(n);
}

std::string Column::text(int64_t row) const {
  if (is_missing(row)) return "";
  const auto i = static_cast<size_t>(row);
  return std::visit(Overloaded{[&](const Categorical& v) {
                                 return v.codes[i] < 0
                                            ? std::string()
                                            : v.categories[static_cast<size_t>(v.codes[i])];
                               },
                               [&](const Strings& v) { return v[i]; },
                               [&](const Booleans& v) { return text_of(v.values[i]); },
                               [&](const auto& v) { return text_of(v[i]); }},
                    values);
}

Categorical as_categorical(const Column& column) {
  return std::visit(
      Overloaded{
          [](const Categorical& v) { return v; },
          [&](const Strings& v) {
            return distinct(v, column, [](const std::string& t) { return t; });
          },
          [&](const Booleans& v) {
            return distinct(v.values, column, [](uint8_t t) { return text_of(t); });
          },
          [&](const auto& v) { return distinct(v, column, [](auto t) { return text_of(t); }); }},
      column.values);
}

const char* name_of(ColumnKind kind) {
  switch (kind) {
    case ColumnKind::categorical:
      return "categorical";
    case ColumnKind::string:
      return "string";
    case ColumnKind::integer:
      return "integer";
    case ColumnKind::real:
      return "float";
    case ColumnKind::boolean:
      return "boolean";
    default:
      return "other";
  }
}

Frame::Frame(Node table, std::string role, std::optional<Node> uns)
    : table_(std::move(table)), uns_(std::move(uns)), role_(std::move(role)) {
  if (!is_compound()) {
    open_group();
    return;
  }
  columns_ = table_.fields();
  index_name_ = columns_.front();
  columns_.erase(columns_.begin());
  size_ = table_.shape()[0];
}

void Frame::open_group() {
  index_name_ = table_.text("_index").value_or(table_.has("index") ? "index" : "_index");
  const auto index = table_.find(index_name_);
  if (!index)
    table_.fail(cat("has no member ", escaped(index_name_), " with the names of its rows"),
                "E-H5AD-MISSING");
  const Node values =
      index->is_group() ? index->child(is_categorical(*index) ? "codes" : "values") : *index;
  if (values.is_group() || values.shape().size() != 1)
    values.fail("the names of the rows must have one dimension", "E-H5AD-LAYOUT");
  size_ = values.shape()[0];

  if (table_.has_attribute("column-order")) {
    columns_ = table_.texts("column-order");
    for (const std::string& column : columns_)
      if (!table_.has(column.substr(0, column.find('/'))))
        table_.fail(cat("column-order names ", escaped(column), ", which is not there"),
                    "E-H5AD-MISSING");
  } else {
    for (std::string& name : table_.names())
      if (name != index_name_ && name != "__categories") columns_.push_back(std::move(name));
  }
}

bool Frame::has(const std::string& column) const {
  return std::find(columns_.begin(), columns_.end(), column) != columns_.end();
}

Node Frame::member(const std::string& name) const {
  return is_compound() ? table_.field(name) : table_.child(name);
}

Node Frame::open(const std::string& column) const {
  if (has(column)) return member(column);
  DataError error(cat(escaped(table_.file()), ": ", role_, " has no column ", escaped(column),
                      "; its columns: ", list_of(columns_)),
                  "E-NO-COLUMN");
  error.set_hint(cat("choose one of the columns of ", role_));
  error.set_where(table_.file(), table_.path());
  throw error;
}

ColumnInfo Frame::info(const std::string& column) const {
  const Node node = open(column);
  ColumnInfo info{.name = column, .stored = node.text("encoding-type").value_or("")};
  if (is_categorical(node) || node.has_attribute("categories") || labels_in_uns(column, node)) {
    info.kind = ColumnKind::categorical;
    info.stored = "categorical";
  } else if (is_nullable(node)) {
    info.nullable = true;
    info.kind = kind_of(node.child("values"));
  } else if (!node.is_group()) {
    info.kind = node.shape().size() == 1 ? kind_of(node) : ColumnKind::other;
    info.stored = node.type().name();
  }
  return info;
}

Column Frame::read(const std::string& column) const { return read(column, open(column)); }

Column Frame::read(const std::string& name, const Node& node) const {
  if (is_categorical(node)) {
    const std::vector<int64_t> ordered = node.integers("ordered");
    return read_categorical(name, node.child("codes"), node.child("categories"),
                            !ordered.empty() && ordered[0] != 0);
  }
  if (is_nullable(node)) return read_nullable(name, node);
  if (node.is_group())
    node.fail(cat("a column was wanted, this is a group encoded as ",
                  escaped(node.text("encoding-type").value_or("nothing known"))),
              "E-H5AD-LAYOUT", "leave this column out or store it as strings or numbers");
  if (node.has_attribute("categories")) {
    // anndata 0.7: codes here, labels in a sub-group under the same name.
    const Node labels = table_.child("__categories").child(name);
    const std::vector<int64_t> ordered = labels.integers("ordered");
    return read_categorical(name, node, labels, !ordered.empty() && ordered[0] != 0);
  }
  if (const auto labels = labels_in_uns(name, node))
    return read_categorical(name, node, *labels, false);
  return read_dataset(name, node);
}

std::optional<Node> Frame::labels_in_uns(const std::string& name, const Node& codes) const {
  if (!is_compound() || !uns_ || codes.type().kind != ElementKind::integer ||
      codes.shape().size() != 1)
    return std::nullopt;
  std::optional<Node> labels = uns_->find(name + "_categories");
  if (!labels || labels->is_group() || labels->shape().size() > 1) return std::nullopt;
  const std::vector<int64_t> values = codes.read_all<int64_t>();
  const int64_t known = labels->size();
  if (std::any_of(values.begin(), values.end(), [known](int64_t v) { return v >= known; }))
    return std::nullopt;
  return labels;
}

bool Frame::has_labels_in_uns(const std::string& column) const {
  return labels_in_uns(column, open(column)).has_value();
}

void Frame::want_rows(const Node& node) const {
  if (node.is_group() || node.shape().size() != 1)
    node.fail("a dataset of one dimension was wanted", "E-H5AD-LAYOUT");
  if (node.shape()[0] != size_)
    node.fail(cat("has ", node.shape()[0], " values, ", role_, " has ", size_, " rows"),
              "E-H5AD-LAYOUT");
}

Column Frame::read_dataset(const std::string& name, const Node& node) const {
  want_rows(node);
  Column column{.name = name, .values = {}, .missing = {}};
  switch (kind_of(node)) {
    case ColumnKind::string:
      column.values = node.read_strings();
      break;
    case ColumnKind::integer: {
      if (node.type().bytes == 8 && !node.type().is_signed)
        for (const uint64_t v : node.read_all<uint64_t>())
          if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
            node.fail(cat("holds ", v, ", integers up to 2^63-1 are read"), "E-SIZE");
      column.values = node.read_all<int64_t>();
      break;
    }
    case ColumnKind::real:
      column.values = node.read_all<double>();
      break;
    case ColumnKind::boolean:
      column.values = Booleans{node.read_all<uint8_t>()};
      break;
    default:
      node.fail(cat("holds ", node.type().name(), " values, which are not read as a column"),
                "E-H5AD-LAYOUT", "leave this column out or store it as strings or numbers");
  }
  return column;
}

Column Frame::read_nullable(const std::string& name, const Node& node) const {
  Column column = read_dataset(name, node.child("values"));
  const Node mask = node.child("mask");
  want_rows(mask);
  std::vector<uint8_t> missing = mask.read_all<uint8_t>();
  if (std::any_of(missing.begin(), missing.end(), [](uint8_t m) { return m != 0; }))
    column.missing = std::move(missing);
  return column;
}

Column Frame::read_categorical(const std::string& name, const Node& codes, const Node& categories,
                               bool ordered) const {
  want_rows(codes);
  if (codes.type().kind != ElementKind::integer)
    codes.fail(cat("codes must be integers, these are ", codes.type().name()), "E-H5AD-LAYOUT");
  Categorical values{.codes = codes.read_all<int32_t>(), .categories = {}, .ordered = ordered};
  if (is_nullable(categories)) {
    const std::vector<uint8_t> missing = categories.child("mask").read_all<uint8_t>();
    if (std::any_of(missing.begin(), missing.end(), [](uint8_t m) { return m != 0; }))
      categories.fail("a category has no value", "E-H5AD-LAYOUT");
    values.categories = texts_of(categories.child("values"));
  } else {
    if (categories.is_group()) categories.fail("a dataset was wanted", "E-H5AD-LAYOUT");
    values.categories = texts_of(categories);
  }
  const auto known = static_cast<int64_t>(values.categories.size());
  Column column{.name = name, .values = {}, .missing = {}};
  for (size_t i = 0; i < values.codes.size(); ++i) {
    const int32_t code = values.codes[i];
    if (code < -1 || code >= known)
      codes.fail(cat("row ", i, " has code ", code, ", there are ", known, " categories"),
                 "E-H5AD-CODE", "the column is damaged; write it again");
    if (code < 0) {
      column.missing.resize(values.codes.size());
      column.missing[i] = 1;
    }
  }
  column.values = std::move(values);
  return column;
}

Strings Frame::index() const {
  const Column column = read(index_name_, member(index_name_));
  if (const auto* names = std::get_if<Strings>(&column.values); names && column.missing.empty())
    return *names;
  Strings names;
  for (int64_t i = 0; i < size_; ++i) names.push_back(column.text(i));
  return names;
}

}  // namespace scgraft
