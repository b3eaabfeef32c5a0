// SPDX-License-Identifier: Apache-2.0
// Fields of compound datasets, as nodes of their own.
#include <hdf5.h>

#include <array>

#include "io/hdf5_node.h"
#include "io/limits.h"
#include "runtime/cat.h"
#include "runtime/checked.h"

namespace scgraft::hdf5 {

void Node::want_table() const {
  if (is_group() || state_->field || type().kind != ElementKind::compound || shape().size() != 1)
    fail("a table was wanted: a compound dataset of one dimension", "E-H5AD-LAYOUT");
}

std::vector<std::string> Node::fields() const {
  want_table();
  const Handle record(H5Dget_type(id()));
  std::vector<std::string> names;
  for (int i = 0; i < H5Tget_nmembers(record.get()); ++i) {
    char* name = H5Tget_member_name(record.get(), static_cast<unsigned>(i));
    if (name == nullptr) fail(last_message(), "E-HDF5-READ");
    names.emplace_back(name);
    H5free_memory(name);
  }
  return names;
}

Node Node::field(const std::string& name) const {
  want_table();
  auto state = std::make_shared<State>();
  state->file = file();
  state->path = path() + "/" + name;
  state->file_bytes = state_->file_bytes;
  state->shape = shape();
  state->chunk_rows = chunk_rows();
  state->field = name;
  H5Iinc_ref(id());
  state->handle = Handle(id());
  Node node{state};
  Handle values = node.file_type();
  if (H5Tget_class(values.get()) == H5T_ARRAY) {
    std::array<hsize_t, limits::kHdf5Rank> inner{};
    const int rank = H5Tget_array_ndims(values.get());
    if (rank < 1 || rank >= limits::kHdf5Rank)
      node.fail(cat("has arrays of ", rank, " dimensions"), "E-SIZE");
    H5Tget_array_dims2(values.get(), inner.data());
    for (int i = 0; i < rank; ++i)
      state->shape.push_back(Checked(inner[static_cast<size_t>(i)]).value());
    values = Handle(H5Tget_super(values.get()));
  }
  state->type = element_type(values.get());
  return node;
}

Handle Node::file_type() const {
  Handle whole(H5Dget_type(id()));
  if (!state_->field) return whole;
  const int index = H5Tget_member_index(whole.get(), state_->field->c_str());
  if (index < 0) fail("there is no such field", "E-H5AD-MISSING");
  return Handle(H5Tget_member_type(whole.get(), static_cast<unsigned>(index)));
}

Handle Node::memory_type(int64_t type) const {
  Handle values(H5Tcopy(type));
  if (!state_->field) return values;
  const std::vector<hsize_t> inner(shape().begin() + 1, shape().end());
  if (!inner.empty())
    values = Handle(H5Tarray_create2(type, static_cast<unsigned>(inner.size()), inner.data()));
  // The C library reads those fields of the file that the type in memory has.
  Handle record(H5Tcreate(H5T_COMPOUND, H5Tget_size(values.get())));
  if (H5Tinsert(record.get(), state_->field->c_str(), 0, values.get()) < 0)
    fail(last_message(), "E-HDF5-READ");
  return record;
}

}  // namespace scgraft::hdf5
