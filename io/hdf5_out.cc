// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5_out.h"

#include <hdf5.h>

#include <algorithm>
#include <array>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft::hdf5 {
namespace {

// About a megabyte per chunk: small enough for the default cache, large enough for the filter.
constexpr int64_t kChunkBytes = 1 << 20;
constexpr int64_t kChunkedFrom = 4096;  // smaller arrays stay in one piece

template <class T>
struct Types;
template <>
struct Types<float> {
  static hid_t memory() { return H5T_NATIVE_FLOAT; }
  static hid_t file() { return H5T_IEEE_F32LE; }
};
template <>
struct Types<double> {
  static hid_t memory() { return H5T_NATIVE_DOUBLE; }
  static hid_t file() { return H5T_IEEE_F64LE; }
};
template <>
struct Types<int8_t> {
  static hid_t memory() { return H5T_NATIVE_INT8; }
  static hid_t file() { return H5T_STD_I8LE; }
};
template <>
struct Types<int16_t> {
  static hid_t memory() { return H5T_NATIVE_INT16; }
  static hid_t file() { return H5T_STD_I16LE; }
};
template <>
struct Types<int32_t> {
  static hid_t memory() { return H5T_NATIVE_INT32; }
  static hid_t file() { return H5T_STD_I32LE; }
};
template <>
struct Types<int64_t> {
  static hid_t memory() { return H5T_NATIVE_INT64; }
  static hid_t file() { return H5T_STD_I64LE; }
};

Handle text_type() {
  Handle type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), H5T_VARIABLE);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

Handle boolean_type() {
  Handle type(H5Tenum_create(H5T_STD_I8LE));
  const int8_t no = 0, yes = 1;
  H5Tenum_insert(type.get(), "FALSE", &no);
  H5Tenum_insert(type.get(), "TRUE", &yes);
  return type;
}

Handle scalar_space() { return Handle(H5Screate(H5S_SCALAR)); }

Handle list_space(size_t size) {
  const hsize_t length = size;
  return Handle(H5Screate_simple(1, &length, nullptr));
}

void set_filters(hid_t create, Compression compression) {
  if (compression.gzip <= 0) return;
  H5Pset_shuffle(create);
  H5Pset_deflate(create, static_cast<unsigned>(compression.gzip));
}

// `kind`: H5P_FILE_CREATE (its root group), H5P_GROUP_CREATE or H5P_DATASET_CREATE.
Handle timeless(hid_t kind) {
  Handle create(H5Pcreate(kind));
  if (H5Pset_obj_track_times(create.get(), false) < 0)
    throw Error("HDF5 objects cannot be made without times");
  return create;
}

// The C library takes pointers to zero-terminated texts.
std::vector<const char*> pointers(std::span<const std::string> texts) {
  std::vector<const char*> result;
  result.reserve(texts.size());
  for (const std::string& text : texts) {
    if (text.find('\0') != std::string::npos)
      throw DataError(
          cat("the text ", escaped(text, 60), " holds a zero byte, HDF5 cannot keep it"),
          "E-H5AD-TEXT");
    result.push_back(text.c_str());
  }
  return result;
}

}  // namespace

Handle dataset_properties() { return timeless(H5P_DATASET_CREATE); }

OutFile::OutFile(const std::string& path, std::string shown) : shown_(std::move(shown)) {
  initialise();
  const Handle access(H5Pcreate(H5P_FILE_ACCESS));
  // The formats of HDF5 1.8: what every reader knows, and attributes above 64 KiB.
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_LATEST);
  const Handle create = timeless(H5P_FILE_CREATE);
  handle_ = Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create.get(), access.get()));
  if (!handle_.valid()) fail("make the file");
}
OutFile::~OutFile() = default;
OutFile::OutFile(OutFile&&) noexcept = default;

void OutFile::close() {
  if (!handle_.valid()) return;
  if (H5Fflush(handle_.get(), H5F_SCOPE_GLOBAL) < 0) fail("flush");
  Handle closing = std::move(handle_);
  if (H5Idec_ref(closing.release()) < 0) fail("close");
}

void OutFile::fail(const std::string& what) const {
  const std::string said = last_message();
  const bool full = said.find("errno = 28") != std::string::npos;
  StorageError error(cat("cannot write ", escaped(shown_), ": ", what, ": ", said),
                     full ? "E-NO-SPACE" : "E-STORAGE");
  error.set_hint(full ? "free space there, or write to another disk"
                      : "check the disk and the permissions of the folder");
  error.set_where(shown_);
  throw error;
}

OutNode::OutNode(const OutFile* file, Handle handle, std::string path)
    : file_(file), handle_(std::make_shared<Handle>(std::move(handle))), path_(std::move(path)) {
  check(handle_->get(), "open");
}

void OutNode::check(int64_t status, const char* what) const {
  if (status < 0) file_->fail(cat(what, " ", escaped(path_)));
}

OutNode OutNode::root(OutFile& file) {
  return OutNode(&file, Handle(H5Gopen2(file.id(), "/", H5P_DEFAULT)), "");
}

OutNode OutNode::child(const std::string& name) const {
  return OutNode(file_, Handle(H5Oopen(id(), name.c_str(), H5P_DEFAULT)), path_ + "/" + name);
}

bool OutNode::has(const std::string& name) const {
  return H5Lexists(id(), name.c_str(), H5P_DEFAULT) > 0;
}

void OutNode::remove(const std::string& name) {
  check(H5Ldelete(id(), name.c_str(), H5P_DEFAULT), "replace a member of");
}

void OutNode::set_attribute(const char* name, int64_t type, int64_t space, const void* values) {
  if (H5Aexists(id(), name) > 0) check(H5Adelete(id(), name), "replace an attribute of");
  const Handle attribute(H5Acreate2(id(), name, type, space, H5P_DEFAULT, H5P_DEFAULT));
  check(attribute.get(), "add an attribute to");
  if (values != nullptr) check(H5Awrite(attribute.get(), type, values), "write an attribute of");
}

void OutNode::set_text(const char* name, const std::string& text) {
  const auto pointer = pointers({&text, 1});
  set_attribute(name, text_type().get(), scalar_space().get(), pointer.data());
}

void OutNode::set_texts(const char* name, const std::vector<std::string>& texts) {
  const auto all = pointers(texts);
  set_attribute(name, text_type().get(), list_space(texts.size()).get(),
                texts.empty() ? nullptr : all.data());
}

void OutNode::set_integers(const char* name, std::span<const int64_t> values) {
  set_attribute(name, H5T_NATIVE_INT64, list_space(values.size()).get(), values.data());
}

void OutNode::set_boolean(const char* name, bool value) {
  const int8_t byte = value ? 1 : 0;
  set_attribute(name, boolean_type().get(), scalar_space().get(), &byte);
}

void OutNode::set_encoding(const std::string& type, const std::string& version) {
  set_text("encoding-type", type);
  set_text("encoding-version", version);
}

OutNode OutNode::add_group(const std::string& name, const std::string& encoding,
                           const std::string& version) {
  const Handle create = timeless(H5P_GROUP_CREATE);
  OutNode group(file_,
                Handle(H5Gcreate2(id(), name.c_str(), H5P_DEFAULT, create.get(), H5P_DEFAULT)),
                path_ + "/" + name);
  group.set_encoding(encoding, version);
  return group;
}

OutNode OutNode::add_dataset(const std::string& name, int64_t type, int64_t space,
                             const void* values) {
  return add_dataset(name, type, space, dataset_properties().get(), values);
}

OutNode OutNode::add_dataset(const std::string& name, int64_t type, int64_t space, int64_t create,
                             const void* values) {
  OutNode node(
      file_, Handle(H5Dcreate2(id(), name.c_str(), type, space, H5P_DEFAULT, create, H5P_DEFAULT)),
      path_ + "/" + name);
  if (values != nullptr)
    node.check(H5Dwrite(node.id(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), "write");
  return node;
}

template <class T>
OutNode OutNode::add_array(const std::string& name, std::span<const int64_t> shape,
                           std::span<const T> values, Compression compression) {
  int64_t elements = 1;
  std::vector<hsize_t> dims;
  for (const int64_t dim : shape) {
    dims.push_back(static_cast<hsize_t>(dim));
    elements *= dim;
  }
  if (elements != static_cast<int64_t>(values.size()))
    throw ShapeError(
        cat("add_array ", name, ": ", values.size(), " values for a shape of ", elements));
  const Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr));
  const Handle create = dataset_properties();
  if (compression.gzip > 0 && elements >= kChunkedFrom) {
    std::vector<hsize_t> chunk = dims;
    const int64_t row_bytes = elements / shape[0] * static_cast<int64_t>(sizeof(T));
    chunk[0] = static_cast<hsize_t>(
        std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(row_bytes, 1), 1, shape[0]));
    H5Pset_chunk(create.get(), static_cast<int>(chunk.size()), chunk.data());
    set_filters(create.get(), compression);
  }
  OutNode node = add_dataset(name, Types<T>::file(), space.get(), create.get(), nullptr);
  if (!values.empty())
    node.check(
        H5Dwrite(node.id(), Types<T>::memory(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
        "write");
  node.set_encoding("array", "0.2.0");
  return node;
}

OutNode OutNode::add_booleans(const std::string& name, std::span<const uint8_t> values) {
  const Handle type = boolean_type();
  OutNode node = add_dataset(name, type.get(), list_space(values.size()).get(),
                             values.empty() ? nullptr : values.data());
  node.set_encoding("array", "0.2.0");
  return node;
}

OutNode OutNode::add_strings(const std::string& name, std::span<const std::string> values) {
  const auto all = pointers(values);
  OutNode node = add_dataset(name, text_type().get(), list_space(values.size()).get(),
                             values.empty() ? nullptr : all.data());
  node.set_encoding("string-array", "0.2.0");
  return node;
}

OutNode OutNode::add_text(const std::string& name, const std::string& value) {
  const auto pointer = pointers({&value, 1});
  OutNode node = add_dataset(name, text_type().get(), scalar_space().get(), pointer.data());
  node.set_encoding("string", "0.2.0");
  return node;
}

OutNode OutNode::add_integer(const std::string& name, int64_t value) {
  OutNode node = add_dataset(name, H5T_NATIVE_INT64, scalar_space().get(), &value);
  node.set_encoding("numeric-scalar", "0.2.0");
  return node;
}

OutNode OutNode::add_real(const std::string& name, double value) {
  OutNode node = add_dataset(name, H5T_NATIVE_DOUBLE, scalar_space().get(), &value);
  node.set_encoding("numeric-scalar", "0.2.0");
  return node;
}

OutNode OutNode::add_boolean(const std::string& name, bool value) {
  const int8_t byte = value ? 1 : 0;
  OutNode node = add_dataset(name, boolean_type().get(), scalar_space().get(), &byte);
  node.set_encoding("numeric-scalar", "0.2.0");
  return node;
}

template <class T>
OutNode OutNode::add_list(const std::string& name, Compression compression) {
  const hsize_t none = 0, any = H5S_UNLIMITED, chunk = kChunkBytes / sizeof(T);
  const Handle space(H5Screate_simple(1, &none, &any));
  const Handle create = dataset_properties();
  H5Pset_chunk(create.get(), 1, &chunk);
  set_filters(create.get(), compression);
  OutNode node = add_dataset(name, Types<T>::file(), space.get(), create.get(), nullptr);
  node.set_encoding("array", "0.2.0");
  return node;
}

template <class T>
void OutNode::append(std::span<const T> values) {
  if (values.empty()) return;
  hsize_t size = 0;
  {
    const Handle space(H5Dget_space(id()));
    check(H5Sget_simple_extent_dims(space.get(), &size, nullptr), "extend");
  }
  const hsize_t count = values.size(), grown = size + count;
  check(H5Dset_extent(id(), &grown), "extend");
  const Handle space(H5Dget_space(id()));
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &size, nullptr, &count, nullptr),
        "extend");
  const Handle memory(H5Screate_simple(1, &count, nullptr));
  check(H5Dwrite(id(), Types<T>::memory(), memory.get(), space.get(), H5P_DEFAULT, values.data()),
        "write");
}

#define SCGRAFT_WRITABLE(T)                                                         \
  template OutNode OutNode::add_array(const std::string&, std::span<const int64_t>, \
                                      std::span<const T>, Compression);             \
  template OutNode OutNode::add_list<T>(const std::string&, Compression);           \
  template void OutNode::append(std::span<const T>);
SCGRAFT_WRITABLE(float)
SCGRAFT_WRITABLE(double)
SCGRAFT_WRITABLE(int8_t)
SCGRAFT_WRITABLE(int16_t)
SCGRAFT_WRITABLE(int32_t)
SCGRAFT_WRITABLE(int64_t)
#undef SCGRAFT_WRITABLE

}  // namespace scgraft::hdf5
