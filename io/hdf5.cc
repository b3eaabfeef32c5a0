// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5.h"

#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "io/hdf5_lzf.h"
#include "io/hdf5_node.h"
#include "io/limits.h"
#include "io/storage_error.h"
#include "io/text.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft::hdf5 {
namespace {

// gzip, the strongest filter of stock HDF5, shrinks by 1032 at most. What claims more than that is
// not in the file, apart from small datasets that were never written and read as their fill value.
constexpr int64_t kLargestRatio = 1100;
constexpr int64_t kUnwrittenBytes = 64 << 20;
constexpr int64_t kNames = 1'000'000;
constexpr int64_t kStringsPerRead = 1 << 16;

herr_t keep_first(unsigned number, const H5E_error2_t* entry, void* out) {
  if (number == 0 && entry->desc != nullptr) *static_cast<std::string*>(out) = entry->desc;
  return 0;
}

ElementKind kind_of(hid_t type) {
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return ElementKind::integer;
    case H5T_FLOAT:
      return ElementKind::real;
    case H5T_STRING:
      return ElementKind::string;
    case H5T_COMPOUND:
      return ElementKind::compound;
    case H5T_REFERENCE:
      return ElementKind::reference;
    case H5T_ENUM: {
      const Handle base(H5Tget_super(type));
      return H5Tget_class(base.get()) == H5T_INTEGER ? ElementKind::boolean : ElementKind::other;
    }
    default:
      return ElementKind::other;
  }
}

// numpy's booleans are an enumeration of FALSE = 0 and TRUE = 1; others are integers with names.
bool is_boolean_enum(hid_t type) {
  if (H5Tget_nmembers(type) != 2) return false;
  for (const auto& [name, want] : {std::pair{"FALSE", 0}, std::pair{"TRUE", 1}}) {
    const int index = H5Tget_member_index(type, name);
    std::array<uint8_t, 16> raw{};
    if (index < 0 || H5Tget_size(type) > raw.size()) return false;
    if (H5Tget_member_value(type, static_cast<unsigned>(index), raw.data()) < 0) return false;
    const Handle base(H5Tget_super(type));
    if (H5Tconvert(base.get(), H5T_NATIVE_INT8, 1, raw.data(), nullptr, H5P_DEFAULT) < 0)
      return false;
    if (raw[0] != want) return false;
  }
  return true;
}

}  // namespace

ElementType element_type(int64_t type) {
  ElementType result;
  result.kind = kind_of(type);
  result.bytes = static_cast<int64_t>(H5Tget_size(type));
  if (result.kind == ElementKind::boolean && !is_boolean_enum(type))
    result.kind = ElementKind::integer;
  if (result.kind == ElementKind::integer) {
    const Handle base(H5Tget_class(type) == H5T_ENUM ? H5Tget_super(type) : H5Tcopy(type));
    result.is_signed = H5Tget_sign(base.get()) != H5T_SGN_NONE;
  }
  if (result.kind == ElementKind::string) result.variable_length = H5Tis_variable_str(type) > 0;
  return result;
}

namespace {

template <class T>
hid_t native_type();
template <>
hid_t native_type<float>() {
  return H5T_NATIVE_FLOAT;
}
template <>
hid_t native_type<double>() {
  return H5T_NATIVE_DOUBLE;
}
template <>
hid_t native_type<int8_t>() {
  return H5T_NATIVE_INT8;
}
template <>
hid_t native_type<uint8_t>() {
  return H5T_NATIVE_UINT8;
}
template <>
hid_t native_type<int32_t>() {
  return H5T_NATIVE_INT32;
}
template <>
hid_t native_type<int64_t>() {
  return H5T_NATIVE_INT64;
}
template <>
hid_t native_type<uint64_t>() {
  return H5T_NATIVE_UINT64;
}

// Memory for variable-length strings: many elements may name the same long text in the file, so
// their sum is bounded as well as each one.
struct StringBudget {
  int64_t left = limits::kHostBudgetBytes;
  bool exceeded = false;
};

void* take_string(size_t bytes, void* budget) {
  auto& b = *static_cast<StringBudget*>(budget);
  if (bytes > static_cast<size_t>(limits::kStringBytes) || static_cast<int64_t>(bytes) > b.left) {
    b.exceeded = true;
    return nullptr;
  }
  b.left -= static_cast<int64_t>(bytes);
  return std::malloc(bytes);
}

void free_string(void* memory, void*) { std::free(memory); }

std::string fixed_string(const char* text, size_t bytes, H5T_str_t padding) {
  size_t length = padding == H5T_STR_SPACEPAD ? bytes : strnlen(text, bytes);
  if (padding == H5T_STR_SPACEPAD)
    while (length > 0 && text[length - 1] == ' ') --length;
  return std::string(text, length);
}

// Strings of a dataset or an attribute. `read` fills a buffer of elements of the given memory type;
// the second argument is the transfer list that bounds its memory.
template <class Read>
std::vector<std::string> decode_strings(const Node& owner, hid_t file_type, int64_t count,
                                        Read&& read) {
  std::vector<std::string> result;
  result.reserve(static_cast<size_t>(count));
  const Handle memory(H5Tcopy(file_type));
  if (H5Tis_variable_str(file_type) > 0) {
    StringBudget budget;
    const Handle transfer(H5Pcreate(H5P_DATASET_XFER));
    H5Pset_vlen_mem_manager(transfer.get(), take_string, &budget, free_string, nullptr);
    std::vector<char*> texts(static_cast<size_t>(count), nullptr);
    const bool good = read(memory.get(), transfer.get(), texts.data());
    const std::string said = good ? std::string() : last_message();
    if (good)
      for (const char* text : texts) result.emplace_back(text == nullptr ? "" : text);
    for (char* text : texts) std::free(text);
    if (budget.exceeded)
      owner.fail(cat("its strings need more than ", limits::kHostBudgetBytes, " bytes, or one of ",
                     "them more than ", limits::kStringBytes),
                 "E-SIZE");
    if (!good) owner.fail(said, "E-HDF5-READ");
    return result;
  }
  const size_t bytes = H5Tget_size(file_type);
  const Checked total = Checked(bytes) * count;
  if (total > limits::kHostBudgetBytes)
    owner.fail(cat("its strings need ", total.value(), " bytes"), "E-SIZE");
  std::vector<char> raw(static_cast<size_t>(total.value()));
  if (!read(memory.get(), hid_t{H5P_DEFAULT}, raw.data()))
    owner.fail(last_message(), "E-HDF5-READ");
  const H5T_str_t padding = H5Tget_strpad(file_type);
  for (int64_t i = 0; i < count; ++i)
    result.push_back(fixed_string(raw.data() + static_cast<size_t>(i) * bytes, bytes, padding));
  return result;
}

herr_t collect_name(hid_t, const char* name, const H5L_info_t*, void* out) {
  auto& names = *static_cast<std::vector<std::string>*>(out);
  if (static_cast<int64_t>(names.size()) >= kNames) return -1;
  names.emplace_back(name);
  return 0;
}

const char* link_kind(H5L_type_t type) {
  switch (type) {
    case H5L_TYPE_SOFT:
      return "a soft link";
    case H5L_TYPE_EXTERNAL:
      return "a link into another file";
    default:
      return "a user-defined link";
  }
}

std::string filter_name(H5Z_filter_t filter) {
  switch (filter) {
    case 307:
      return "bzip2";
    case 32001:
      return "blosc";
    case 32004:
      return "lz4";
    case 32008:
      return "bitshuffle";
    case 32015:
      return "zstd";
    case 32026:
      return "blosc2";
    default:
      return "unknown";
  }
}

}  // namespace

Handle::~Handle() {
  if (id_ >= 0) H5Idec_ref(id_);
}

void initialise() {
  // The C library's exit handler closes what is still open, and crashes in HDF5 1.10 when closing a
  // file failed before, as on a full disk. Everything here is closed by its owner, so the handler
  // is not installed; that must be said before the library's first call. It fails when said twice,
  // which only a program around this one can do.
  static const bool no_exit_handler = H5dont_atexit() >= 0;
  static_cast<void>(no_exit_handler);
  // The error stack belongs to a thread, the plugin state to the process.
  thread_local const bool silent = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static const bool closed = H5PLset_loading_state(0) >= 0;
  if (!silent || !closed) throw Error("the HDF5 library could not be initialised");
  static const bool reads_lzf = (register_lzf(), true);
  static_cast<void>(reads_lzf);
}

std::string last_message() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  return text.empty() ? "the HDF5 library gave no reason" : escaped(text);
}

std::string ElementType::name() const {
  switch (kind) {
    case ElementKind::boolean:
      return "bool";
    case ElementKind::integer:
      return cat(is_signed ? "int" : "uint", bytes * 8);
    case ElementKind::real:
      return cat("float", bytes * 8);
    case ElementKind::string:
      return "string";
    case ElementKind::compound:
      return "compound";
    case ElementKind::reference:
      return "reference";
    default:
      return "other";
  }
}

void Node::fail(const std::string& message, const std::string& code,
                const std::string& hint) const {
  DataError error(cat(escaped(file()), ": ", escaped(path()), ": ", message), code);
  error.set_hint(code == "E-HDF5-READ" && hint.empty()
                     ? "the file may be cut short or damaged; copy or download it again"
                     : hint);
  error.set_where(file(), path());
  throw error;
}

Node Node::open(const std::string& file) {
  initialise();
  std::error_code status;
  const auto info = std::filesystem::status(file, status);
  if (!std::filesystem::exists(info)) {
    if (status.value() == EACCES) throw_storage_error("read", file, EACCES);
    DataError error(cat("there is no file ", escaped(file)), "E-NO-FILE");
    error.set_hint("check the path");
    error.set_where(file);
    throw error;
  }
  auto state = std::make_shared<State>();
  state->file = file;
  state->path = "/";
  state->group = true;
  Node root{state};
  if (!std::filesystem::is_regular_file(info))
    root.fail("an HDF5 file was wanted, this is a folder or a device", "E-NOT-HDF5",
              "name the .h5ad file itself; Zarr folders are not read");
  state->file_bytes = static_cast<int64_t>(std::filesystem::file_size(file, status));
  if (::access(file.c_str(), R_OK) != 0) throw_storage_error("read", file, errno);
  const Handle opened(H5Fopen(file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  if (!opened.valid()) {
    const std::string said = last_message();
    if (H5Fis_hdf5(file.c_str()) <= 0)
      root.fail(cat("an HDF5 file was wanted, this one is something else (", said, ")"),
                "E-NOT-HDF5", "check that the path names an .h5ad file and that it is complete");
    root.fail(said, "E-HDF5-READ");
  }
  state->handle = Handle(H5Oopen(opened.get(), "/", H5P_DEFAULT));
  if (!state->handle.valid()) root.fail(last_message(), "E-HDF5-READ");
  return root;
}

const std::string& Node::file() const { return state_->file; }
const std::string& Node::path() const { return state_->path; }
bool Node::is_group() const { return state_->group; }
int64_t Node::id() const { return state_->handle.get(); }
const std::vector<int64_t>& Node::shape() const { return state_->shape; }
const ElementType& Node::type() const { return state_->type; }
int64_t Node::chunk_rows() const { return state_->chunk_rows; }

int64_t Node::size() const {
  Checked count = 1;
  for (const int64_t dim : state_->shape) count = count * dim;
  return count.value();
}

std::vector<std::string> Node::names() const {
  std::vector<std::string> result;
  if (!is_group()) fail("a group was wanted, this is a dataset", "E-H5AD-LAYOUT");
  hsize_t at = 0;
  if (H5Literate(id(), H5_INDEX_NAME, H5_ITER_INC, &at, collect_name, &result) < 0)
    fail(last_message(), "E-HDF5-READ");
  return result;
}

bool Node::has(const std::string& name) const {
  if (!is_group() || name.empty() || name == "." || name.find('/') != std::string::npos)
    return false;
  return H5Lexists(id(), name.c_str(), H5P_DEFAULT) > 0;
}

std::optional<Node> Node::find(const std::string& name) const {
  const size_t slash = name.find('/');
  const std::string head = name.substr(0, slash);
  if (!has(head)) return std::nullopt;
  Node member = open_member(head);
  if (slash == std::string::npos) return member;
  return member.find(name.substr(slash + 1));
}

Node Node::child(const std::string& name) const {
  std::optional<Node> found = find(name);
  if (!found) fail(cat("has no member ", escaped(name)), "E-H5AD-MISSING");
  return *std::move(found);
}

Node Node::open_member(const std::string& name) const {
  auto state = std::make_shared<State>();
  state->file = file();
  state->path = path() == "/" ? "/" + name : path() + "/" + name;
  state->file_bytes = state_->file_bytes;
  const Node node{state};
  H5L_info_t link;
  if (H5Lget_info(id(), name.c_str(), &link, H5P_DEFAULT) < 0)
    node.fail(last_message(), "E-HDF5-READ");
  if (link.type != H5L_TYPE_HARD)
    node.fail(cat(link_kind(link.type), " was found where the data should be; links are not ",
                  "followed because they can reach other files"),
              "E-HDF5-LINK", "write the file again with the data in the place of the link");
  const auto levels = std::count(state->path.begin(), state->path.end(), '/');
  if (levels > limits::kHdf5Depth) node.fail("groups are nested too deeply", "E-SIZE");
  state->handle = Handle(H5Oopen(id(), name.c_str(), H5P_DEFAULT));
  if (!state->handle.valid()) node.fail(last_message(), "E-HDF5-READ");
  switch (H5Iget_type(state->handle.get())) {
    case H5I_GROUP:
      state->group = true;
      return Node(std::move(state));
    case H5I_DATASET:
      return Node(dataset(std::move(state), state_->file_bytes));
    default:
      node.fail("is neither a group nor a dataset", "E-H5AD-LAYOUT");
  }
}

// Reads shape, type and storage of a dataset and refuses what must not be read.
std::shared_ptr<const Node::State> Node::dataset(std::shared_ptr<State> state, int64_t file_bytes) {
  const Node node{state};
  const hid_t id = state->handle.get();
  const Handle space(H5Dget_space(id));
  const Handle type(H5Dget_type(id));
  const Handle create(H5Dget_create_plist(id));
  if (!space.valid() || !type.valid() || !create.valid()) node.fail(last_message(), "E-HDF5-READ");
  state->type = element_type(type.get());

  const int rank = H5Sget_simple_extent_ndims(space.get());
  if (rank < 0 || rank > limits::kHdf5Rank)
    node.fail(cat("has ", rank, " dimensions, at most ", limits::kHdf5Rank, " are read"), "E-SIZE");
  std::vector<hsize_t> dims(static_cast<size_t>(rank));
  H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  Checked elements = H5Sget_simple_extent_type(space.get()) == H5S_NULL ? 0 : 1;
  if (elements == 0) dims.assign(1, 0);
  for (const hsize_t dim : dims) {
    state->shape.push_back(Checked(dim).value());
    elements = elements * dim;
  }

  const H5D_layout_t layout = H5Pget_layout(create.get());
  if (H5Pget_external_count(create.get()) > 0 || layout == H5D_VIRTUAL)
    node.fail("keeps its values in another file; such data are not read", "E-HDF5-EXTERNAL",
              "write the file again with the values inside");
  const int filters = H5Pget_nfilters(create.get());
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0, config = 0;
    size_t parameters = 0;
    const H5Z_filter_t filter = H5Pget_filter2(create.get(), static_cast<unsigned>(i), &flags,
                                               &parameters, nullptr, 0, nullptr, &config);
    if (H5Zfilter_avail(filter) <= 0)
      node.fail(cat("is compressed with filter ", filter, " (", filter_name(filter),
                    "), which this program does not have"),
                "E-HDF5-FILTER",
                "open the file with Python's anndata and write it again with compression=\"gzip\"");
  }
  const Checked bytes = elements * state->type.bytes;
  if (layout == H5D_CHUNKED && rank > 0) {
    H5Pget_chunk(create.get(), rank, dims.data());
    Checked chunk = state->type.bytes;
    for (const hsize_t dim : dims) chunk = chunk * dim;
    if (chunk > limits::kHostBudgetBytes)
      node.fail(cat("is stored in pieces of ", chunk.value(), " bytes, at most ",
                    limits::kHostBudgetBytes, " are read at once"),
                "E-SIZE", "write the file again with smaller chunks");
    check_lzf(node);
    state->chunk_rows = static_cast<int64_t>(dims[0]);
  }
  const Checked stored = H5Dget_storage_size(id);
  const Checked possible = stored > file_bytes ? Checked(0) : stored * kLargestRatio;
  if (bytes > possible + kUnwrittenBytes)
    node.fail(cat("claims ", elements.value(), " values, the file holds ", stored.value(),
                  " bytes for them"),
              "E-SIZE", "the file may be cut short or damaged; copy or download it again");
  return state;
}

void Node::want_dataset(const char* action) const {
  if (is_group())
    fail(cat("a dataset was wanted to ", action, ", this is a group"), "E-H5AD-LAYOUT");
}

void Node::read_block(int64_t type, std::span<const int64_t> first, std::span<const int64_t> count,
                      void* out) const {
  for (const int64_t n : count)
    if (n == 0) return;
  std::array<hsize_t, limits::kHdf5Rank> start{}, length{};
  for (size_t i = 0; i < first.size(); ++i) {
    const int64_t dim = shape()[i];
    if (first[i] < 0 || count[i] < 0 || first[i] > dim || count[i] > dim - first[i])
      fail(cat("elements ", first[i], " to ", first[i] + count[i], " were wanted, there are ", dim),
           "E-H5AD-LAYOUT");
    start[i] = static_cast<hsize_t>(first[i]);
    length[i] = static_cast<hsize_t>(count[i]);
  }
  // A field has the dimensions of its table, which has one, and then those inside an element.
  const int rank = state_->field ? 1 : static_cast<int>(first.size());
  const Handle element = memory_type(type);
  const Handle file_space(H5Dget_space(id()));
  const Handle memory(H5Screate_simple(rank, length.data(), nullptr));
  if (rank > 0 && H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start.data(), nullptr,
                                      length.data(), nullptr) < 0)
    fail(last_message(), "E-HDF5-READ");
  if (H5Dread(id(), element.get(), memory.get(), file_space.get(), H5P_DEFAULT, out) < 0)
    fail(last_message(), "E-HDF5-READ");
}

namespace {

void want_numbers(const Node& node) {
  const ElementKind kind = node.type().kind;
  if (kind != ElementKind::integer && kind != ElementKind::real && kind != ElementKind::boolean)
    node.fail(cat("numbers were wanted, this holds ", node.type().name(), " values"),
              "E-H5AD-LAYOUT");
}

}  // namespace

template <class T>
void Node::read(int64_t first, std::span<T> out) const {
  want_dataset("read numbers from");
  want_numbers(*this);
  if (shape().size() != 1)
    fail(cat("one dimension was wanted, this has ", shape().size()), "E-H5AD-LAYOUT");
  const std::array start{first};
  const std::array count{static_cast<int64_t>(out.size())};
  read_block(native_type<T>(), start, count, out.data());
}

template <class T>
void Node::read_rows(int64_t first, int64_t rows, std::span<T> out) const {
  want_dataset("read rows from");
  want_numbers(*this);
  if (shape().size() != 2)
    fail(cat("two dimensions were wanted, this has ", shape().size()), "E-H5AD-LAYOUT");
  const std::array start{first, int64_t{0}};
  const std::array count{rows, shape()[1]};
  if ((Checked(rows) * shape()[1]) != Checked(out.size()))
    throw ShapeError("read_rows: the buffer must hold rows * columns elements");
  read_block(native_type<T>(), start, count, out.data());
}

template <class T>
std::vector<T> Node::read_all() const {
  want_dataset("read numbers from");
  want_numbers(*this);
  const Checked bytes = Checked(size()) * sizeof(T);
  if (bytes > limits::kHostBudgetBytes)
    fail(cat("needs ", bytes.value(), " bytes of memory, at most ", limits::kHostBudgetBytes,
             " are taken"),
         "E-SIZE");
  std::vector<T> result(static_cast<size_t>(size()));
  if (result.empty()) return result;
  const Handle element = memory_type(native_type<T>());
  if (H5Dread(id(), element.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, result.data()) < 0)
    fail(last_message(), "E-HDF5-READ");
  return result;
}

#define SCGRAFT_READABLE(T)                                            \
  template void Node::read(int64_t, std::span<T>) const;               \
  template void Node::read_rows(int64_t, int64_t, std::span<T>) const; \
  template std::vector<T> Node::read_all() const;
SCGRAFT_READABLE(float)
SCGRAFT_READABLE(double)
SCGRAFT_READABLE(int8_t)
SCGRAFT_READABLE(uint8_t)
SCGRAFT_READABLE(int32_t)
SCGRAFT_READABLE(int64_t)
SCGRAFT_READABLE(uint64_t)
#undef SCGRAFT_READABLE

std::vector<std::string> Node::read_strings(int64_t first, int64_t count) const {
  want_dataset("read strings from");
  if (type().kind != ElementKind::string)
    fail(cat("strings were wanted, this holds ", type().name(), " values"), "E-H5AD-LAYOUT");
  if (shape().size() > 1)
    fail(cat("one dimension was wanted, this has ", shape().size()), "E-H5AD-LAYOUT");
  const Handle stored = file_type();
  std::vector<std::string> result;
  Checked bytes = 0;
  for (int64_t done = 0; done < count;) {
    const int64_t n = std::min(count - done, kStringsPerRead);
    const Handle space(H5Dget_space(id()));
    const hsize_t start = static_cast<hsize_t>(first + done), length = static_cast<hsize_t>(n);
    const Handle memory(H5Screate_simple(1, &length, nullptr));
    if (!shape().empty() &&
        H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &length, nullptr) < 0)
      fail(last_message(), "E-HDF5-READ");
    auto block = decode_strings(*this, stored.get(), n, [&](hid_t type, hid_t list, void* out) {
      const Handle element = memory_type(type);
      return H5Dread(id(), element.get(), memory.get(), space.get(), list, out) >= 0;
    });
    for (std::string& text : block) {
      bytes = bytes + text.size() + sizeof(std::string);
      result.push_back(std::move(text));
    }
    if (bytes > limits::kHostBudgetBytes)
      fail(cat("its strings need more than ", limits::kHostBudgetBytes, " bytes"), "E-SIZE");
    done += n;
  }
  return result;
}

Node Node::with_cache(int64_t bytes) const {
  const Handle access(H5Pcreate(H5P_DATASET_ACCESS));
  constexpr size_t kSlots = 10007;
  H5Pset_chunk_cache(access.get(), kSlots, static_cast<size_t>(bytes), H5D_CHUNK_CACHE_W0_DEFAULT);
  auto state = std::make_shared<State>();
  state->file = file();
  state->path = path();
  if (state_->field) state->path.resize(path().size() - state_->field->size() - 1);
  state->file_bytes = state_->file_bytes;
  // By its place in the file, which the links on the way cannot change any more.
  const Handle root(H5Iget_file_id(id()));
  state->handle = Handle(H5Dopen2(root.get(), state->path.c_str(), access.get()));
  if (!state->handle.valid()) fail(last_message(), "E-HDF5-READ");
  const Node cached(dataset(std::move(state), state_->file_bytes));
  return state_->field ? cached.field(*state_->field) : cached;
}

bool Node::has_attribute(const char* name) const {
  return !state_->field && H5Aexists(id(), name) > 0;
}

namespace {

struct Attribute {
  Handle id, type, space;
  int64_t count = 0;
  ElementType element;
};

std::optional<Attribute> open_attribute(const Node& node, const char* name) {
  if (!node.has_attribute(name)) return std::nullopt;
  Attribute a;
  a.id = Handle(H5Aopen(node.id(), name, H5P_DEFAULT));
  if (!a.id.valid()) node.fail(last_message(), "E-HDF5-READ");
  a.type = Handle(H5Aget_type(a.id.get()));
  a.space = Handle(H5Aget_space(a.id.get()));
  if (!a.type.valid() || !a.space.valid()) node.fail(last_message(), "E-HDF5-READ");
  a.count = Checked(H5Sget_simple_extent_npoints(a.space.get())).value();
  a.element = element_type(a.type.get());
  const Checked bytes = Checked(a.count) * a.element.bytes;
  if (a.count > kNames || bytes > limits::kStringBytes)
    node.fail(cat("attribute ", name, " claims ", a.count, " values"), "E-SIZE");
  return a;
}

std::vector<std::string> attribute_strings(const Node& node, const char* name, const Attribute& a) {
  if (a.count == 0) return {};
  if (a.element.kind != ElementKind::string)
    node.fail(cat("attribute ", name, " should hold strings, it holds ", a.element.name()),
              "E-H5AD-LAYOUT");
  // Attributes are read without a transfer list; what a long one takes lies in the file already.
  return decode_strings(node, a.type.get(), a.count, [&](hid_t type, hid_t, void* out) {
    return H5Aread(a.id.get(), type, out) >= 0;
  });
}

}  // namespace

std::optional<std::string> Node::text(const char* name) const {
  const auto a = open_attribute(*this, name);
  if (!a) return std::nullopt;
  if (a->count != 1)
    fail(cat("attribute ", name, " should hold one string, it holds ", a->count), "E-H5AD-LAYOUT");
  return attribute_strings(*this, name, *a)[0];
}

std::vector<std::string> Node::texts(const char* name) const {
  const auto a = open_attribute(*this, name);
  if (!a) return {};
  return attribute_strings(*this, name, *a);
}

std::vector<int64_t> Node::integers(const char* name) const {
  const auto a = open_attribute(*this, name);
  if (!a) return {};
  if (a->element.kind != ElementKind::integer && a->element.kind != ElementKind::boolean)
    fail(cat("attribute ", name, " should hold integers, it holds ", a->element.name()),
         "E-H5AD-LAYOUT");
  std::vector<int64_t> result(static_cast<size_t>(a->count));
  if (!result.empty() && H5Aread(a->id.get(), H5T_NATIVE_INT64, result.data()) < 0)
    fail(last_message(), "E-HDF5-READ");
  return result;
}

}  // namespace scgraft::hdf5
