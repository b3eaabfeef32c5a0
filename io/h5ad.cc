// SPDX-License-Identifier: Apache-2.0
#include "io/h5ad.h"

#include "io/limits.h"
#include "io/text.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using hdf5::ElementKind;
using hdf5::Node;

bool is_number(const Node& dataset) {
  const ElementKind kind = dataset.type().kind;
  return kind == ElementKind::integer || kind == ElementKind::real || kind == ElementKind::boolean;
}

Node table(const Node& root, const std::string& name) {
  std::optional<Node> found = root.find(name);
  if (!found)
    root.fail(cat("an AnnData file was wanted, this one has no ", name), "E-H5AD-MISSING",
              "check that the file is an .h5ad; 10x .h5 and loom files must be converted first");
  return *std::move(found);
}

// obs or var; where it is a compound dataset, uns has the labels of its categories.
Frame frame(const Node& root, const char* name) {
  const Node node = table(root, name);
  return Frame(node, name, node.is_group() ? std::nullopt : root.find("uns"));
}

void want_shape(const Node& node, int64_t rows, int64_t columns, int64_t n_obs, int64_t n_vars) {
  if (rows != n_obs || columns != n_vars)
    node.fail(cat("is ", rows, " x ", columns, ", the tables describe ", n_obs, " cells and ",
                  n_vars, " genes"),
              "E-H5AD-LAYOUT");
}

// Checks the three arrays of a sparse matrix against each other.
void describe_sparse(const Node& group, const char* attribute, MatrixSlot& slot) {
  const std::vector<int64_t> shape = group.integers(attribute);
  if (shape.size() != 2)
    group.fail(cat("attribute ", attribute, " should hold 2 integers, it holds ", shape.size()),
               "E-H5AD-LAYOUT");
  slot.rows = shape[0];
  slot.columns = shape[1];
  const Node data = group.child("data"), indices = group.child("indices"),
             indptr = group.child("indptr");
  for (const Node& part : {data, indices, indptr})
    if (part.is_group() || part.shape().size() != 1 || !is_number(part))
      part.fail("a list of numbers was wanted", "E-H5AD-LAYOUT");
  for (const Node& part : {indices, indptr})
    if (part.type().kind != ElementKind::integer)
      part.fail(cat("integers were wanted, these are ", part.type().name()), "E-H5AD-LAYOUT");
  if (data.size() != indices.size())
    group.fail(cat("has ", data.size(), " values and ", indices.size(), " indices"),
               "E-H5AD-LAYOUT");
  const int64_t lines = slot.format == MatrixFormat::csr ? slot.rows : slot.columns;
  if (Checked(indptr.size()) != Checked(lines) + 1)
    indptr.fail(
        cat("has ", indptr.size(), " entries, ", Checked(lines).value() + 1, " were wanted"),
        "E-H5AD-INDPTR");
  slot.dtype = data.type().name();
  slot.stored = data.size();
}

MatrixSlot describe(const Node& node) {
  MatrixSlot slot;
  std::string encoding = node.text("encoding-type").value_or("");
  // Before anndata 0.7: "csr" or "csc" under another name.
  const bool is_h5sparse = encoding.empty() && node.has_attribute("h5sparse_format");
  if (is_h5sparse) encoding = node.text("h5sparse_format").value_or("") + "_matrix";
  if (!node.is_group()) {
    slot.dtype = node.type().name();
    if (encoding == "null" || !is_number(node)) return slot;
    if (node.shape().size() != 2)
      node.fail(cat("a matrix was wanted, this has ", node.shape().size(), " dimensions"),
                "E-H5AD-LAYOUT");
    slot.format = MatrixFormat::dense;
    slot.rows = node.shape()[0];
    slot.columns = node.shape()[1];
    slot.stored = node.size();
    return slot;
  }
  if (encoding == "csr_matrix") slot.format = MatrixFormat::csr;
  if (encoding == "csc_matrix") slot.format = MatrixFormat::csc;
  if (slot.format == MatrixFormat::none) {
    slot.dtype = encoding.empty() ? "unknown" : escaped(encoding);
    return slot;
  }
  describe_sparse(node, is_h5sparse ? "h5sparse_shape" : "shape", slot);
  return slot;
}

}  // namespace

const char* name_of(MatrixFormat format) {
  switch (format) {
    case MatrixFormat::csr:
      return "csr";
    case MatrixFormat::csc:
      return "csc";
    case MatrixFormat::dense:
      return "dense";
    default:
      return "none";
  }
}

H5ad::H5ad(Node root, Frame obs, Frame var)
    : root_(std::move(root)), obs_(std::move(obs)), var_(std::move(var)) {}

H5ad H5ad::open(const std::string& path) {
  const Node root = Node::open(path);
  const std::string encoding = root.text("encoding-type").value_or("anndata");
  if (encoding != "anndata")
    root.fail(cat("an AnnData file was wanted, this one is encoded as ", escaped(encoding)),
              "E-H5AD-LAYOUT", "store one modality as an .h5ad file");
  Frame obs = frame(root, "obs");
  Frame var = frame(root, "var");
  H5ad file(root, std::move(obs), std::move(var));
  if (file.n_obs() > limits::kCells)
    root.fail(cat("claims ", file.n_obs(), " cells, at most ", limits::kCells, " are read"),
              "E-SIZE");
  if (file.n_vars() > limits::kGenes)
    root.fail(cat("claims ", file.n_vars(), " genes, at most ", limits::kGenes, " are read"),
              "E-SIZE");
  file.add_slot("X", "X", file.n_vars());
  const std::optional<Node> raw = root.find("raw");
  const bool is_group = raw && raw->is_group(), is_flat = root.has("raw.X");
  if (is_group && is_flat)
    root.fail("has raw both as a group and, as raw.X, beside it; which one counts cannot be told",
              "E-H5AD-LAYOUT", "delete one of them, or write the file again with anndata");
  if (is_group || is_flat) {
    const std::string prefix = is_group ? "raw/" : "raw.";
    const Node genes = table(root, prefix + "var");
    file.raw_var_.emplace(genes, prefix + "var");
    if (file.raw_var_->size() > limits::kGenes)
      genes.fail(cat("claims ", file.raw_var_->size(), " genes"), "E-SIZE");
    file.add_slot("raw", prefix + "X", file.raw_var_->size());
  }
  for (const std::string& layer : file.members("layers"))
    file.add_slot(layer, "layers/" + layer, file.n_vars());
  return file;
}

void H5ad::add_slot(const std::string& name, const std::string& path, int64_t columns) {
  MatrixSlot slot;
  if (const auto node = root_.find(path)) {
    slot = describe(*node);
    if (slot.format != MatrixFormat::none)
      want_shape(*node, slot.rows, slot.columns, n_obs(), columns);
  }
  slot.name = name;
  slot.path = path;
  slots_.push_back(std::move(slot));
}

const MatrixSlot& H5ad::slot(const std::string& name) const {
  for (const MatrixSlot& s : slots_)
    if (s.name == name) return s;
  for (const MatrixSlot& s : slots_)
    if (s.path == name) return s;
  std::string known;
  for (const MatrixSlot& s : slots_) known += (known.empty() ? "" : ", ") + escaped(s.name, 60);
  DataError error(cat(escaped(path()), ": there is no matrix ", escaped(name), "; found: ", known),
                  "E-NO-SLOT");
  error.set_hint("choose X, raw, or the name of a layer");
  error.set_where(path());
  throw error;
}

const Frame& H5ad::var_of(const MatrixSlot& slot) const {
  return slot.is_raw() ? raw_var_.value() : var_;
}

std::vector<std::string> H5ad::members(const char* group) const {
  const auto node = root_.find(group);
  if (!node || !node->is_group()) return {};
  return node->names();
}

std::vector<std::string> H5ad::obsm_keys() const {
  const auto node = root_.find("obsm");
  if (node && node->is_group()) return node->names();
  if (node && node->type().kind == ElementKind::compound) return node->fields();
  return {};
}

std::vector<std::string> H5ad::uns_keys() const {
  std::vector<std::string> keys = members("uns");
  for (const Frame* table : {&obs_, &var_}) {
    if (!table->is_compound()) continue;
    std::erase_if(keys, [&](const std::string& key) {
      constexpr std::string_view kEnding = "_categories";
      if (!key.ends_with(kEnding)) return false;
      const std::string column = key.substr(0, key.size() - kEnding.size());
      return table->has(column) && table->has_labels_in_uns(column);
    });
  }
  return keys;
}

H5ad::Embedding H5ad::obsm(const std::string& key) const {
  const Node all = root_.child("obsm");
  const Node node = all.is_group() ? all.child(key) : all.field(key);
  if (node.is_group() || node.shape().size() != 2 || !is_number(node))
    node.fail("a dense matrix of numbers was wanted", "E-H5AD-LAYOUT");
  if (node.shape()[0] != n_obs())
    node.fail(cat("has ", node.shape()[0], " rows, there are ", n_obs(), " cells"),
              "E-H5AD-LAYOUT");
  return {.dim = node.shape()[1], .values = node.read_all<float>()};
}

}  // namespace scgraft
