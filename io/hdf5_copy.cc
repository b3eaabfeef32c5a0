// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5_copy.h"

#include <hdf5.h>

#include <vector>

#include "io/limits.h"
#include "io/text.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft::hdf5 {
namespace {

// The C library reports both sides of a copy with one error; a failed write names itself.
[[noreturn]] void fail_copy(const Node& from, const OutFile& to, const std::string& name) {
  const std::string said = last_message();
  if (said.find("write") != std::string::npos) to.fail(cat("copy ", escaped(name)));
  from.fail(cat(escaped(name), " cannot be copied: ", said), "E-HDF5-READ");
}

void copy_attribute(const Node& from, OutFile& to, hid_t root, const char* name) {
  const auto check = [&](int64_t status) {
    if (status < 0) fail_copy(from, to, name);
  };
  const Handle source(H5Aopen(from.id(), name, H5P_DEFAULT));
  check(source.get());
  const Handle type(H5Aget_type(source.get())), space(H5Aget_space(source.get()));
  if (H5Tdetect_class(type.get(), H5T_REFERENCE) > 0) return;  // would point nowhere
  const Handle copy(H5Acreate2(root, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT));
  check(copy.get());
  const hssize_t count = H5Sget_simple_extent_npoints(space.get());
  if (count <= 0) return;
  const Checked bytes = Checked(count) * H5Tget_size(type.get());
  if (bytes > limits::kStringBytes)
    from.fail(cat("attribute ", escaped(name), " is too large"), "E-SIZE");
  std::vector<unsigned char> values(static_cast<size_t>(bytes.value()));
  check(H5Aread(source.get(), type.get(), values.data()));
  const herr_t status = H5Awrite(copy.get(), type.get(), values.data());
  if (H5Tdetect_class(type.get(), H5T_VLEN) > 0 || H5Tis_variable_str(type.get()) > 0)
    H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, values.data());
  check(status);
}

herr_t collect_attribute(hid_t, const char* name, const H5A_info_t*, void* names) {
  static_cast<std::vector<std::string>*>(names)->emplace_back(name);
  return 0;
}

void copy_soft_link(const Node& from, OutFile& to, hid_t root, const std::string& name,
                    size_t bytes) {
  std::vector<char> target(bytes + 1);
  if (H5Lget_val(from.id(), name.c_str(), target.data(), bytes, H5P_DEFAULT) < 0 ||
      H5Lcreate_soft(target.data(), root, name.c_str(), H5P_DEFAULT, H5P_DEFAULT) < 0)
    fail_copy(from, to, name);
}

}  // namespace

void copy_file(const Node& from, OutFile& to) {
  const Handle root(H5Gopen2(to.id(), "/", H5P_DEFAULT));
  if (!root.valid()) to.fail("open its root");
  std::vector<std::string> attributes;
  if (H5Aiterate2(from.id(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect_attribute,
                  &attributes) < 0)
    from.fail(last_message(), "E-HDF5-READ");
  for (const std::string& name : attributes) copy_attribute(from, to, root.get(), name.c_str());

  const Handle copy(H5Pcreate(H5P_OBJECT_COPY));
  // anndata 0.7 finds the categories of a column through a reference.
  H5Pset_copy_object(copy.get(), H5O_COPY_EXPAND_REFERENCE_FLAG);
  for (const std::string& name : from.names()) {
    H5L_info_t info;
    if (H5Lget_info(from.id(), name.c_str(), &info, H5P_DEFAULT) < 0) fail_copy(from, to, name);
    if (info.type == H5L_TYPE_SOFT) {
      copy_soft_link(from, to, root.get(), name, info.u.val_size);
      continue;
    }
    if (info.type != H5L_TYPE_HARD)
      from.fail(cat(escaped(name), " is a link into another file, which is not followed"),
                "E-HDF5-LINK", "store the data in the file itself");
    if (H5Ocopy(from.id(), name.c_str(), root.get(), name.c_str(), copy.get(), H5P_DEFAULT) < 0)
      fail_copy(from, to, name);
  }
}

}  // namespace scgraft::hdf5
