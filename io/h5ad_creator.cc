// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad_creator.h"

#include <hdf5.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <span>

#include "io/hdf5_list.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::GrowingList;
using hdf5::OutNode;

constexpr int64_t kValuesPerChunk = 1 << 17;  // of X: half a megabyte

template <class T>
std::vector<T> narrowed(const std::vector<int32_t>& codes) {
  return {codes.begin(), codes.end()};
}

// One column of a table that grows.
class ColumnOut {
 public:
  ColumnOut(const hdf5::OutFile& file, OutNode& frame, const Column& first)
      : name_(first.name), kind_(first.values.index()) {
    if (const auto* v = std::get_if<Categorical>(&first.values)) {
      OutNode group = frame.add_group(name_, "categorical", "0.2.0");
      group.set_boolean("ordered", v->ordered);
      group.add_strings("categories", v->categories);
      categories_ = v->categories;
      const size_t count = categories_.size();
      code_bytes_ = count <= 127 ? 1 : count <= 32767 ? 2 : 4;
      list_ = code_bytes_ == 1   ? GrowingList::of<int8_t>(file, group, "codes")
              : code_bytes_ == 2 ? GrowingList::of<int16_t>(file, group, "codes")
                                 : GrowingList::of<int32_t>(file, group, "codes");
    } else if (std::holds_alternative<Strings>(first.values)) {
      list_ = GrowingList::of_texts(file, frame, name_);
    } else if (std::holds_alternative<Integers>(first.values)) {
      list_ = GrowingList::of<int64_t>(file, frame, name_);
    } else if (std::holds_alternative<Reals>(first.values)) {
      list_ = GrowingList::of<double>(file, frame, name_);
    } else {
      list_ = GrowingList::of_booleans(file, frame, name_);
    }
  }

  void append(const Column& piece) {
    require(piece.name == name_ && piece.values.index() == kind_, "the column ", escaped(name_),
            " was wanted again, with values of the same kind; this one is ", escaped(piece.name));
    if (const auto* v = std::get_if<Categorical>(&piece.values)) return append(*v);
    const auto is_set = [](uint8_t m) { return m != 0; };
    require<TypeError>(std::none_of(piece.missing.begin(), piece.missing.end(), is_set),
                       "the column ", escaped(name_),
                       " has missing values, which only a categorical can hold");
    if (const auto* v = std::get_if<Strings>(&piece.values)) list_->append(std::span(*v));
    if (const auto* v = std::get_if<Integers>(&piece.values))
      list_->append(std::span<const int64_t>(*v));
    if (const auto* v = std::get_if<Reals>(&piece.values))
      list_->append(std::span<const double>(*v));
    if (const auto* v = std::get_if<Booleans>(&piece.values))
      list_->append(std::span<const uint8_t>(v->values));
  }

 private:
  void append(const Categorical& piece) {
    require(piece.categories == categories_, "the column ", escaped(name_),
            " must have the same categories in every piece");
    const auto known = static_cast<int32_t>(categories_.size());
    for (const int32_t code : piece.codes)
      require(code >= -1 && code < known, "the column ", escaped(name_), " has code ", code,
              ", there are ", known, " categories");
    if (code_bytes_ == 1) list_->append(std::span<const int8_t>(narrowed<int8_t>(piece.codes)));
    if (code_bytes_ == 2) list_->append(std::span<const int16_t>(narrowed<int16_t>(piece.codes)));
    if (code_bytes_ == 4) list_->append(std::span<const int32_t>(piece.codes));
  }

  std::string name_;
  size_t kind_;
  int code_bytes_ = 0;
  Strings categories_;
  std::optional<GrowingList> list_;
};

// A data frame that grows; its first piece, perhaps an empty one, decides the columns.
class FrameOut {
 public:
  FrameOut(const hdf5::OutFile& file, OutNode& root, const std::string& name)
      : file_(file),
        group_(root.add_group(name, "dataframe", "0.2.0")),
        index_(GrowingList::of_texts(file, group_, "_index")) {
    group_.set_text("_index", "_index");
  }

  void append(const Table& piece) {
    if (!started_) start(piece);
    require(piece.columns.size() == columns_.size(), group_.path(), " has ", columns_.size(),
            " columns, this piece ", piece.columns.size());
    for (const Column& column : piece.columns)
      require(column.size() == piece.size(), group_.path(), ": the column ", escaped(column.name),
              " has ", column.size(), " values for ", piece.size(), " rows");
    index_.append(std::span(piece.index));
    for (size_t i = 0; i < columns_.size(); ++i) columns_[i].append(piece.columns[i]);
  }

  void finish() {
    if (!started_) start({});
  }
  int64_t size() const { return index_.size(); }

 private:
  void start(const Table& piece) {
    started_ = true;
    std::vector<std::string> order;
    for (const Column& column : piece.columns) {
      require(column.name != "_index" && !column.name.empty() &&
                  column.name.find('/') == std::string::npos && !group_.has(column.name),
              group_.path(), " cannot have a column called ", escaped(column.name));
      columns_.emplace_back(file_, group_, column);
      order.push_back(column.name);
    }
    group_.set_texts("column-order", order);
  }

  const hdf5::OutFile& file_;
  OutNode group_;
  GrowingList index_;
  std::vector<ColumnOut> columns_;
  bool started_ = false;
};

// X, row by row.
class MatrixOut {
 public:
  MatrixOut(const hdf5::OutFile& file, OutNode& root, const H5adCreatorOptions& options)
      : file_(file),
        options_(options),
        group_(root.add_group("X", "csr_matrix", "0.1.0")),
        data_(GrowingList::of<float>(file, group_, "data", {kValuesPerChunk, options.compression})),
        indices_(GrowingList::of<int32_t>(file, group_, "indices",
                                          {kValuesPerChunk, options.compression})),
        pointers_(GrowingList::of<int32_t>(file, group_, "indptr")) {
    append_pointers({0});
  }

  void append(const SparseRows& rows) {
    if (columns_ < 0) columns_ = rows.columns;
    require(rows.columns == columns_, "X has ", columns_, " columns, this piece ", rows.columns);
    require(!rows.offsets.empty() && rows.offsets.front() == 0 &&
                rows.offsets.back() == static_cast<int64_t>(rows.value.size()) &&
                rows.column.size() == rows.value.size(),
            "the offsets of the rows do not fit their values");
    std::vector<int64_t> pointers(rows.offsets.begin() + 1, rows.offsets.end());
    for (int64_t& p : pointers) p += data_.size();
    data_.append(std::span<const float>(rows.value));
    indices_.append(std::span<const int32_t>(rows.column));
    append_pointers(pointers);
  }

  void finish(int64_t n_obs, int64_t n_vars) {
    if (columns_ < 0 && n_obs == 0) columns_ = n_vars;
    require(n_obs == rows(), "X has ", rows(), " rows, obs has ", n_obs);
    require(n_vars == columns_, "X has ", columns_, " columns, var has ", n_vars, " rows");
    const int64_t shape[] = {n_obs, n_vars};
    group_.set_integers("shape", shape);
  }

 private:
  int64_t rows() const { return pointers_.size() - 1; }

  void append_pointers(const std::vector<int64_t>& pointers) {
    if (pointers.empty()) return;
    if (!wide_ && pointers.back() > options_.pointer_limit) widen();
    if (wide_) return pointers_.append(std::span<const int64_t>(pointers));
    const std::vector<int32_t> narrow(pointers.begin(), pointers.end());
    pointers_.append(std::span<const int32_t>(narrow));
  }

  // Copies the row pointers written so far into a list of int64 that takes their place.
  void widen() {
    constexpr int64_t kBlock = 1 << 20;
    GrowingList wide = GrowingList::of<int64_t>(file_, group_, "indptr-wide");
    std::vector<int64_t> block;
    for (int64_t first = 0; first < pointers_.size(); first += kBlock) {
      block.resize(static_cast<size_t>(std::min(kBlock, pointers_.size() - first)));
      const hsize_t start = static_cast<hsize_t>(first), count = block.size();
      const hdf5::Handle space(H5Dget_space(pointers_.id()));
      const hdf5::Handle memory(H5Screate_simple(1, &count, nullptr));
      if (H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr) < 0 ||
          H5Dread(pointers_.id(), H5T_NATIVE_INT64, memory.get(), space.get(), H5P_DEFAULT,
                  block.data()) < 0)
        file_.fail("read the row pointers again");
      wide.append(std::span<const int64_t>(block));
    }
    group_.remove("indptr");
    if (H5Lmove(group_.id(), "indptr-wide", group_.id(), "indptr", H5P_DEFAULT, H5P_DEFAULT) < 0)
      file_.fail("replace the row pointers");
    pointers_ = std::move(wide);
    wide_ = true;
  }

  const hdf5::OutFile& file_;
  H5adCreatorOptions options_;
  OutNode group_;
  GrowingList data_, indices_, pointers_;
  int64_t columns_ = -1;
  bool wide_ = false;
};

}  // namespace

// Members are closed in reverse order: every object before its file, the file before its name.
struct H5adCreator::State {
  State(const std::string& path, Overwrite overwrite, const H5adCreatorOptions& options)
      : output(path, overwrite), file(output.temporary(), path) {
    OutNode root = OutNode::root(file);
    root.set_encoding("anndata", "0.1.0");
    for (const char* name : {"layers", "obsm", "varm", "obsp", "varp", "uns"})
      root.add_group(name, "dict", "0.1.0");
    obs.emplace(file, root, "obs");
    var.emplace(file, root, "var");
    x.emplace(file, root, options);
  }

  OutputFile output;
  hdf5::OutFile file;
  std::optional<FrameOut> obs, var;
  std::optional<MatrixOut> x;
};

H5adCreator::H5adCreator(const std::string& path, Overwrite overwrite, H5adCreatorOptions options)
    : state_(std::make_unique<State>(path, overwrite, options)) {}
H5adCreator::~H5adCreator() = default;
H5adCreator::H5adCreator(H5adCreator&&) noexcept = default;

void H5adCreator::append_obs(const Table& cells) { state_->obs->append(cells); }
void H5adCreator::append_var(const Table& genes) { state_->var->append(genes); }
void H5adCreator::append_rows(const SparseRows& rows) { state_->x->append(rows); }

void H5adCreator::commit() {
  State& s = *state_;
  s.obs->finish();
  s.var->finish();
  s.x->finish(s.obs->size(), s.var->size());
  // An open object would keep the file open behind the back of close().
  s.x.reset();
  s.var.reset();
  s.obs.reset();
  s.file.close();
  s.output.commit();
}

}  // namespace scgraft
