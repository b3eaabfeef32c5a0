// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_tables.h"

#include <set>
#include <vector>

namespace scgraft {
namespace {

using hdf5::ElementKind;
using hdf5::Node;
using hdf5::OutNode;

template <class T>
std::vector<T> narrowed(const std::vector<int32_t>& codes) {
  return {codes.begin(), codes.end()};
}

void want_member_name(const Node& node, const std::string& name) {
  if (name.find('/') != std::string::npos)
    node.fail("a column with \"/\" in its name cannot be kept in the current layout",
              "E-H5AD-LAYOUT", "rename the column and write the file again");
}

void add_column(OutNode& frame, const Column& column, bool is_single) {
  const std::string& name = column.name;
  if (const auto* v = std::get_if<Categorical>(&column.values)) add_categorical(frame, name, *v);
  if (const auto* v = std::get_if<Strings>(&column.values)) frame.add_strings(name, *v);
  if (const auto* v = std::get_if<Integers>(&column.values)) frame.add_array(name, *v);
  if (const auto* v = std::get_if<Booleans>(&column.values)) frame.add_booleans(name, v->values);
  if (const auto* v = std::get_if<Reals>(&column.values)) {
    if (is_single)
      frame.add_array(name, std::vector<float>(v->begin(), v->end()));
    else
      frame.add_array(name, *v);
  }
}

void renew_frame(const Node& old, const Frame& table, OutNode& root, const std::string& name) {
  root.remove(name);
  OutNode frame = root.add_group(name, "dataframe", "0.2.0");
  frame.set_text("_index", table.index_name());
  frame.set_texts("column-order", table.columns());
  frame.add_strings(table.index_name(), table.index());
  for (const std::string& column : table.columns()) {
    want_member_name(old.field(column), column);
    add_column(frame, table.read(column), table.info(column).stored == "float32");
  }
}

void renew_arrays(const Node& old, OutNode& root, const std::string& name) {
  root.remove(name);
  OutNode group = root.add_group(name, "dict", "0.1.0");
  for (const std::string& key : old.fields()) {
    const Node field = old.field(key);
    want_member_name(field, key);
    if (field.type().kind == ElementKind::real && field.type().bytes == 4)
      group.add_array<float>(key, field.shape(), field.read_all<float>());
    else if (field.type().kind == ElementKind::integer)
      group.add_array<int64_t>(key, field.shape(), field.read_all<int64_t>());
    else
      group.add_array<double>(key, field.shape(), field.read_all<double>());
  }
}

}  // namespace

void add_categorical(OutNode& frame, const std::string& name, const Categorical& values) {
  OutNode group = frame.add_group(name, "categorical", "0.2.0");
  group.set_boolean("ordered", values.ordered);
  group.add_strings("categories", values.categories);
  if (values.categories.size() <= 127)
    group.add_array("codes", narrowed<int8_t>(values.codes));
  else if (values.categories.size() <= 32767)
    group.add_array("codes", narrowed<int16_t>(values.codes));
  else
    group.add_array("codes", values.codes);
}

void renew_tables(const H5ad& in, hdf5::OutFile& out) {
  OutNode root = OutNode::root(out);
  std::set<std::string> labels;
  for (const auto& [name, table] : {std::pair{"obs", &in.obs()}, std::pair{"var", &in.var()}}) {
    if (!table->is_compound()) continue;
    renew_frame(in.root().child(name), *table, root, name);
    for (const std::string& column : table->columns())
      if (table->has_labels_in_uns(column)) labels.insert(column + "_categories");
  }
  for (const std::string& name : labels) root.child("uns").remove(name);
  for (const char* name : {"obsm", "varm"})
    if (const auto old = in.root().find(name);
        old && !old->is_group() && old->type().kind == ElementKind::compound)
      renew_arrays(*old, root, name);
}

}  // namespace scgraft
