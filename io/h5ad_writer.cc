// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_writer.h"

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>

#include "io/h5ad.h"
#include "io/h5ad_tables.h"
#include "io/h5ad_uns.h"
#include "io/hdf5_copy.h"
#include "io/hdf5_out.h"
#include "io/storage_error.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::OutNode;

Overwrite allowed(const std::string& input, const std::string& output, Overwrite overwrite,
                  const H5adWriterOptions& options) {
  std::error_code ignored;
  if (!std::filesystem::equivalent(input, output, ignored)) return overwrite;
  if (options.in_place) return Overwrite::replace;
  ConfigError error(cat("the output ", escaped(output), " is the input file"), "E-IN-PLACE");
  error.set_hint("choose another output; the input is never changed");
  error.set_where(output);
  throw error;
}

// Takes the disk space of the copy before it starts: H5Ocopy of HDF5 1.10 crashes when one of its
// writes fails. What is left over is cut off by trim().
void reserve(const std::string& temporary, const std::string& shown, uintmax_t input_bytes) {
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) throw_storage_error("write", shown, errno);
  const auto bytes = static_cast<off_t>(input_bytes + input_bytes / 16 + (1 << 20));
  const int error = ::fallocate(file, 0, 0, bytes) == 0 ? 0 : errno;
  ::close(file);
  // Not every file system can; there the copy starts without the promise.
  if (error != 0 && error != EOPNOTSUPP && error != ENOSYS && error != EINVAL)
    throw_storage_error("write", shown, error);
}

void trim(const std::string& temporary, const std::string& shown, hsize_t bytes) {
  std::error_code error;
  if (std::filesystem::file_size(temporary, error) > bytes && !error)
    std::filesystem::resize_file(temporary, bytes, error);
  if (error) throw_storage_error("write", shown, error.value());
}

void require_size(const char* what, const std::string& name, size_t got, int64_t want) {
  require(static_cast<int64_t>(got) == want, what, " ", escaped(name), ": ", want,
          " values were wanted, ", got, " came");
}

}  // namespace

struct H5adWriter::State {
  State(const std::string& input, const std::string& output, Overwrite overwrite,
        const H5adWriterOptions& options_)
      : options(options_),
        in(H5ad::open(input)),
        out(output, allowed(input, output, overwrite, options_)),
        file(out.temporary(), output),
        obs_order(in.obs().columns()),
        var_order(in.var().columns()) {
    reserve(out.temporary(), output, std::filesystem::file_size(input));
    hdf5::copy_file(in.root(), file);
    renew_tables(in, file);
  }

  // The group of that name, made when the input has none.
  OutNode group(const char* name) {
    OutNode root = OutNode::root(file);
    return root.has(name) ? root.child(name) : root.add_group(name, "dict", "0.1.0");
  }

  bool has(const char* group_name, const std::string& name) {
    OutNode root = OutNode::root(file);
    return root.has(group_name) && root.child(group_name).has(name);
  }

  // Leaves `name` free inside the group.
  void clear(OutNode& parent, const std::string& name) {
    require_element_name(name);
    require(!streamed || written == in.n_obs(), "obsm: ", written, " of ", in.n_obs(),
            " rows were written before the next element");
    streamed.reset();
    if (!parent.has(name)) return;
    if (!options.overwrite_slots) {
      ConfigError error(cat(escaped(parent.path().substr(1)), " has ", escaped(name),
                            " already, and it was left as it is"),
                        "E-SLOT-EXISTS");
      error.set_hint("choose another --key-added, or pass --force to replace it");
      error.set_where(in.path(), parent.path() + "/" + name);
      throw error;
    }
    parent.remove(name);
  }

  // Calls write(frame) with the name free, and puts the column at the end of the table.
  template <class Write>
  void add_column(const char* table, std::vector<std::string>& order, const std::string& index,
                  const std::string& name, Write&& write) {
    OutNode frame = OutNode::root(file).child(table);
    if (name == index || name == "_index" || name == "__categories") {
      ConfigError error(cat(table, ": ", escaped(name), " is the name of its index"),
                        "E-SLOT-NAME");
      error.set_hint("choose another --key-added");
      throw error;
    }
    clear(frame, name);
    write(frame);
    // anndata 0.7 kept the categories of all columns here.
    if (frame.has("__categories"))
      if (OutNode old = frame.child("__categories"); old.has(name)) old.remove(name);
    if (std::find(order.begin(), order.end(), name) == order.end()) order.push_back(name);
    frame.set_texts("column-order", order);
  }
  template <class Write>
  void add_obs(const std::string& name, size_t values, Write&& write) {
    require_size("obs", name, values, in.n_obs());
    add_column("obs", obs_order, in.obs().index_name(), name, write);
  }

  H5adWriterOptions options;
  H5ad in;
  OutputFile out;
  hdf5::OutFile file;
  std::vector<std::string> obs_order, var_order;
  std::optional<OutNode> streamed;  // an obsm entry that rows are still added to
  int64_t written = 0, dim = 0;
};

H5adWriter::H5adWriter(const std::string& input, const std::string& output, Overwrite overwrite,
                       H5adWriterOptions options)
    : state_(std::make_unique<State>(input, output, overwrite, options)) {}
H5adWriter::~H5adWriter() = default;
H5adWriter::H5adWriter(H5adWriter&&) noexcept = default;

int64_t H5adWriter::n_obs() const { return state_->in.n_obs(); }
int64_t H5adWriter::n_vars() const { return state_->in.n_vars(); }
bool H5adWriter::has_obs(const std::string& column) const { return state_->has("obs", column); }
bool H5adWriter::has_obsm(const std::string& key) const { return state_->has("obsm", key); }
bool H5adWriter::has_uns(const std::string& key) const { return state_->has("uns", key); }

void H5adWriter::add_categorical(const std::string& column, std::span<const int32_t> codes,
                                 const std::vector<std::string>& categories) {
  add_categorical(column, Categorical{.codes = {codes.begin(), codes.end()},
                                      .categories = categories,
                                      .ordered = false});
}

void H5adWriter::add_categorical(const std::string& column, const Categorical& values) {
  const auto known = static_cast<int32_t>(values.categories.size());
  for (const int32_t code : values.codes)
    require(code >= -1 && code < known, "obs ", escaped(column), ": code ", code, ", there are ",
            known, " categories");
  const std::set<std::string> distinct(values.categories.begin(), values.categories.end());
  require(distinct.size() == values.categories.size(), "obs ", escaped(column),
          ": a category comes twice");
  state_->add_obs(column, values.codes.size(),
                  [&](OutNode& frame) { scgraft::add_categorical(frame, column, values); });
}

void H5adWriter::add_real(const std::string& column, std::span<const float> values) {
  state_->add_obs(column, values.size(), [&](OutNode& frame) {
    const int64_t shape[] = {n_obs()};
    frame.add_array<float>(column, shape, values);
  });
}

void H5adWriter::add_integer(const std::string& column, std::span<const int64_t> values) {
  state_->add_obs(column, values.size(), [&](OutNode& frame) {
    const int64_t shape[] = {n_obs()};
    frame.add_array<int64_t>(column, shape, values);
  });
}

void H5adWriter::add_strings(const std::string& column, std::span<const std::string> values) {
  state_->add_obs(column, values.size(),
                  [&](OutNode& frame) { frame.add_strings(column, values); });
}

void H5adWriter::add_booleans(const std::string& column, std::span<const uint8_t> values) {
  state_->add_obs(column, values.size(),
                  [&](OutNode& frame) { frame.add_booleans(column, values); });
}

void H5adWriter::add_var_booleans(const std::string& column, std::span<const uint8_t> values) {
  State& s = *state_;
  require_size("var", column, values.size(), n_vars());
  s.add_column("var", s.var_order, s.in.var().index_name(), column,
               [&](OutNode& frame) { frame.add_booleans(column, values); });
}

void H5adWriter::add_obsm(const std::string& key, int64_t dim, std::span<const float> values) {
  require_size("obsm", key, values.size(), n_obs() * dim);
  OutNode obsm = state_->group("obsm");
  state_->clear(obsm, key);
  const int64_t shape[] = {n_obs(), dim};
  obsm.add_array<float>(key, shape, values);
}

void H5adWriter::start_obsm(const std::string& key, int64_t dim) {
  State& s = *state_;
  require(dim > 0, "obsm ", escaped(key), ": a positive number of columns was wanted, not ", dim);
  OutNode obsm = s.group("obsm");
  s.clear(obsm, key);
  const hsize_t shape[] = {static_cast<hsize_t>(n_obs()), static_cast<hsize_t>(dim)};
  const hdf5::Handle space(H5Screate_simple(2, shape, nullptr));
  {
    const hdf5::Handle create = hdf5::dataset_properties();
    const hdf5::Handle made(H5Dcreate2(obsm.id(), key.c_str(), H5T_IEEE_F32LE, space.get(),
                                       H5P_DEFAULT, create.get(), H5P_DEFAULT));
    if (!made.valid()) s.file.fail(cat("make obsm/", escaped(key)));
  }
  s.streamed = obsm.child(key);
  s.streamed->set_encoding("array", "0.2.0");
  s.written = 0;
  s.dim = dim;
}

void H5adWriter::append_obsm(std::span<const float> rows) {
  State& s = *state_;
  require(s.streamed.has_value(), "obsm: rows came before start_obsm()");
  const auto count = static_cast<int64_t>(rows.size()) / s.dim;
  require(count * s.dim == static_cast<int64_t>(rows.size()) && count <= n_obs() - s.written,
          s.streamed->path(), ": ", rows.size(), " values came for rows of ", s.dim, " from row ",
          s.written, " of ", n_obs());
  if (count == 0) return;
  const hsize_t first[] = {static_cast<hsize_t>(s.written), 0};
  const hsize_t extent[] = {static_cast<hsize_t>(count), static_cast<hsize_t>(s.dim)};
  const hdf5::Handle space(H5Dget_space(s.streamed->id()));
  const hdf5::Handle memory(H5Screate_simple(2, extent, nullptr));
  if (H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, first, nullptr, extent, nullptr) < 0 ||
      H5Dwrite(s.streamed->id(), H5T_NATIVE_FLOAT, memory.get(), space.get(), H5P_DEFAULT,
               rows.data()) < 0)
    s.file.fail(cat("write ", escaped(s.streamed->path())));
  s.written += count;
}

void H5adWriter::add_obsm_frame(const std::string& key, const std::vector<std::string>& columns,
                                std::span<const float> values) {
  require_size("obsm", key, values.size(), n_obs() * static_cast<int64_t>(columns.size()));
  std::vector<std::string> names = columns;
  for (std::string& name : names) {
    std::replace(name.begin(), name.end(), '/', '|');
    require_element_name(name);
  }
  const std::set<std::string> distinct(names.begin(), names.end());
  require(distinct.size() == names.size() && !distinct.count("_index"), "obsm ", escaped(key),
          ": a column comes twice, or is called _index");
  OutNode obsm = state_->group("obsm");
  state_->clear(obsm, key);
  OutNode frame = obsm.add_group(key, "dataframe", "0.2.0");
  frame.set_text("_index", "_index");
  frame.set_texts("column-order", names);
  frame.add_strings("_index", state_->in.obs().index());
  std::vector<float> column(static_cast<size_t>(n_obs()));
  for (size_t k = 0; k < names.size(); ++k) {
    for (size_t i = 0; i < column.size(); ++i) column[i] = values[i * names.size() + k];
    frame.add_array(names[k], column);
  }
}

void H5adWriter::add_varm(const std::string& key, int64_t dim, std::span<const float> values) {
  require_size("varm", key, values.size(), n_vars() * dim);
  OutNode varm = state_->group("varm");
  state_->clear(varm, key);
  const int64_t shape[] = {n_vars(), dim};
  varm.add_array<float>(key, shape, values);
}

void H5adWriter::add_uns(const std::string& key, const nlohmann::json& value) {
  OutNode uns = state_->group("uns");
  state_->clear(uns, key);
  add_json(uns, key, value);
}

void H5adWriter::add_uns_strings(const std::string& key, const std::vector<std::string>& values) {
  OutNode uns = state_->group("uns");
  state_->clear(uns, key);
  uns.add_strings(key, values);
}

void H5adWriter::commit() {
  State& s = *state_;
  require(!s.streamed || s.written == n_obs(), "obsm: ", s.written, " of ", n_obs(),
          " rows were written before commit()");
  s.streamed.reset();
  hsize_t bytes = 0;
  if (H5Fflush(s.file.id(), H5F_SCOPE_GLOBAL) < 0 || H5Fget_filesize(s.file.id(), &bytes) < 0)
    s.file.fail("flush");
  s.file.close();
  trim(s.out.temporary(), s.out.path(), bytes);
  s.out.commit();
}

}  // namespace scgraft
