// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Reading HDF5 files that nobody vouches for. Links that leave the place they stand in, data kept
// outside the file, and filter plugins are refused; sizes are compared with the file before memory
// is taken for them. The library prints nothing: its own words end up in the exception.
//
// One thread at a time uses this; the C library below serialises its calls at best.
namespace scgraft::hdf5 {

// Owns one identifier of the C library.
class Handle {
 public:
  Handle() = default;
  explicit Handle(int64_t id) : id_(id) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Handle();

  int64_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  // Gives the identifier up to the caller, who closes it.
  int64_t release() { return std::exchange(id_, -1); }

 private:
  int64_t id_ = -1;
};

// Silences the C library and forbids its plugins; called by everything that opens or makes a file.
void initialise();

// What the C library said about the call that just failed: its innermost message, escaped.
std::string last_message();

enum class ElementKind { boolean, integer, real, string, compound, reference, other };

struct ElementType {
  ElementKind kind = ElementKind::other;
  int64_t bytes = 0;
  bool is_signed = true;
  bool variable_length = false;  // of strings

  // numpy's word: "float32", "int64", "bool", "string", ...
  std::string name() const;
};

// A group or a dataset of a file opened for reading. Copies share the open object, and the file
// stays open as long as one of its nodes lives.
//
// Everything throws DataError: E-HDF5-READ (truncated or damaged), E-HDF5-LINK (a soft, external
// or user-defined link), E-HDF5-EXTERNAL (data in another file), E-HDF5-FILTER (a filter this
// build does not have), E-SIZE (a size that the file cannot hold), E-H5AD-MISSING (no such
// object), E-H5AD-LAYOUT (an object of another kind than wanted).
class Node {
 public:
  // The root group. E-NO-FILE when there is no such file, E-NOT-HDF5 when it is something else.
  static Node open(const std::string& file);

  const std::string& file() const;
  const std::string& path() const;  // "/obs/cell_type"
  bool is_group() const;
  int64_t id() const;

  // Members of a group, by name in byte order.
  std::vector<std::string> names() const;
  bool has(const std::string& name) const;
  // A member; `name` may hold "/" for a member of a member.
  Node child(const std::string& name) const;
  std::optional<Node> find(const std::string& name) const;

  bool has_attribute(const char* name) const;
  // A scalar string attribute, or one string in an array; nothing when absent.
  std::optional<std::string> text(const char* name) const;
  // A string array; an empty array of any type has no strings.
  std::vector<std::string> texts(const char* name) const;
  // Integers of any type and shape, or booleans; empty when absent.
  std::vector<int64_t> integers(const char* name) const;

  // Datasets: dimensions (empty for a scalar) and type.
  const std::vector<int64_t>& shape() const;
  int64_t size() const;  // number of elements
  const ElementType& type() const;
  // Rows of one storage chunk, 0 when stored in one piece.
  int64_t chunk_rows() const;

  // Elements [first, first + out.size()) of a dataset of one dimension, converted to T; integers
  // that do not fit T become its largest or smallest value.
  // T: float, double, int8_t, uint8_t, int32_t, int64_t, uint64_t.
  template <class T>
  void read(int64_t first, std::span<T> out) const;
  // Rows [first, first + rows) of a matrix, row-major; out holds rows * columns elements.
  template <class T>
  void read_rows(int64_t first, int64_t rows, std::span<T> out) const;
  // All elements, in row-major order; a scalar is one element.
  template <class T>
  std::vector<T> read_all() const;
  // Strings [first, first + count) of a dataset of one dimension or a scalar.
  std::vector<std::string> read_strings(int64_t first, int64_t count) const;
  std::vector<std::string> read_strings() const { return read_strings(0, size()); }

  // Tables of anndata before 0.7, a compound dataset of one dimension: the names of its fields in
  // their order, and one of them as if it were a dataset, without attributes. A field that holds
  // arrays has their dimensions after the table's.
  std::vector<std::string> fields() const;
  Node field(const std::string& name) const;

  // Reopens the dataset with a chunk cache that holds `bytes`, for reads that come back to a chunk.
  Node with_cache(int64_t bytes) const;

  // Throws a DataError about this object.
  [[noreturn]] void fail(const std::string& message, const std::string& code,
                         const std::string& hint = {}) const;

 private:
  struct State;
  explicit Node(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  Node open_member(const std::string& name) const;
  static std::shared_ptr<const State> dataset(std::shared_ptr<State> state, int64_t file_bytes);
  void read_block(int64_t type, std::span<const int64_t> first, std::span<const int64_t> count,
                  void* out) const;
  void want_dataset(const char* action) const;
  void want_table() const;
  // The type of what is read, and how it lies in memory when its values are of `type`.
  Handle file_type() const;
  Handle memory_type(int64_t type) const;
  std::shared_ptr<const State> state_;
};

}  // namespace scgraft::hdf5
