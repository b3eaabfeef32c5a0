// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5_list.h"

#include <hdf5.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft::hdf5 {
namespace {

Handle text_type() {
  Handle type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), H5T_VARIABLE);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

// The enumeration that h5py reads as bool.
Handle boolean_type() {
  Handle type(H5Tenum_create(H5T_STD_I8LE));
  const int8_t no = 0, yes = 1;
  H5Tenum_insert(type.get(), "FALSE", &no);
  H5Tenum_insert(type.get(), "TRUE", &yes);
  return type;
}

template <class T>
hid_t memory_type() {
  if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
  if constexpr (std::is_same_v<T, double>) return H5T_NATIVE_DOUBLE;
  if constexpr (std::is_same_v<T, int8_t>) return H5T_NATIVE_INT8;
  if constexpr (std::is_same_v<T, int16_t>) return H5T_NATIVE_INT16;
  if constexpr (std::is_same_v<T, int32_t>) return H5T_NATIVE_INT32;
  if constexpr (std::is_same_v<T, int64_t>) return H5T_NATIVE_INT64;
}

template <class T>
hid_t file_type() {
  if constexpr (std::is_same_v<T, float>) return H5T_IEEE_F32LE;
  if constexpr (std::is_same_v<T, double>) return H5T_IEEE_F64LE;
  if constexpr (std::is_same_v<T, int8_t>) return H5T_STD_I8LE;
  if constexpr (std::is_same_v<T, int16_t>) return H5T_STD_I16LE;
  if constexpr (std::is_same_v<T, int32_t>) return H5T_STD_I32LE;
  if constexpr (std::is_same_v<T, int64_t>) return H5T_STD_I64LE;
}

}  // namespace

GrowingList::GrowingList(const OutFile& file, OutNode& parent, const std::string& name,
                         int64_t type, ListOptions options)
    : file_(&file), path_(parent.path() + "/" + name) {
  const hsize_t none = 0, any = H5S_UNLIMITED;
  const hsize_t chunk = static_cast<hsize_t>(std::max<int64_t>(options.chunk, 1));
  const Handle space(H5Screate_simple(1, &none, &any));
  const Handle create = dataset_properties();
  H5Pset_chunk(create.get(), 1, &chunk);
  if (options.compression.gzip > 0) {
    H5Pset_shuffle(create.get());
    H5Pset_deflate(create.get(), static_cast<unsigned>(options.compression.gzip));
  }
  dataset_ = Handle(H5Dcreate2(parent.id(), name.c_str(), type, space.get(), H5P_DEFAULT,
                               create.get(), H5P_DEFAULT));
  if (!dataset_.valid()) file.fail(cat("make ", escaped(path_)));
}

template <class T>
GrowingList GrowingList::of(const OutFile& file, OutNode& parent, const std::string& name,
                            ListOptions options) {
  GrowingList list(file, parent, name, file_type<T>(), options);
  parent.child(name).set_encoding("array", "0.2.0");
  return list;
}

GrowingList GrowingList::of_texts(const OutFile& file, OutNode& parent, const std::string& name,
                                  ListOptions options) {
  options.compression = {};  // texts live in a heap that filters do not see
  GrowingList list(file, parent, name, text_type().get(), options);
  parent.child(name).set_encoding("string-array", "0.2.0");
  return list;
}

GrowingList GrowingList::of_booleans(const OutFile& file, OutNode& parent, const std::string& name,
                                     ListOptions options) {
  GrowingList list(file, parent, name, boolean_type().get(), options);
  parent.child(name).set_encoding("array", "0.2.0");
  return list;
}

void GrowingList::write(int64_t memory, int64_t count, const void* values) {
  if (count == 0) return;
  const auto first = static_cast<hsize_t>(size_), extra = static_cast<hsize_t>(count);
  const hsize_t grown = first + extra;
  const auto check = [&](int64_t status) {
    if (status < 0) file_->fail(cat("write ", escaped(path_)));
  };
  check(H5Dset_extent(dataset_.get(), &grown));
  const Handle space(H5Dget_space(dataset_.get()));
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &first, nullptr, &extra, nullptr));
  const Handle block(H5Screate_simple(1, &extra, nullptr));
  check(H5Dwrite(dataset_.get(), memory, block.get(), space.get(), H5P_DEFAULT, values));
  size_ += count;
}

template <class T>
void GrowingList::append(std::span<const T> values) {
  write(memory_type<T>(), static_cast<int64_t>(values.size()), values.data());
}

template <>
void GrowingList::append(std::span<const uint8_t> values) {
  write(boolean_type().get(), static_cast<int64_t>(values.size()), values.data());
}

void GrowingList::append(std::span<const std::string> texts) {
  std::vector<const char*> pointers;
  pointers.reserve(texts.size());
  for (const std::string& text : texts) {
    if (text.find('\0') != std::string::npos)
      throw DataError(
          cat("the text ", escaped(text, 60), " holds a zero byte, HDF5 cannot keep it"),
          "E-H5AD-TEXT");
    pointers.push_back(text.c_str());
  }
  write(text_type().get(), static_cast<int64_t>(pointers.size()), pointers.data());
}

#define SCGRAFT_LISTED(T)                                                               \
  template GrowingList GrowingList::of<T>(const OutFile&, OutNode&, const std::string&, \
                                          ListOptions);                                 \
  template void GrowingList::append(std::span<const T>);
SCGRAFT_LISTED(int8_t)
SCGRAFT_LISTED(int16_t)
SCGRAFT_LISTED(int32_t)
SCGRAFT_LISTED(int64_t)
SCGRAFT_LISTED(float)
SCGRAFT_LISTED(double)
#undef SCGRAFT_LISTED

}  // namespace scgraft::hdf5
