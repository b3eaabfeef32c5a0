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

constexpr const char* kRewrite =
    "open the file with a current anndata and write it again: "
    "anndata.read_h5ad(\"in.h5ad\").write_h5ad(\"out.h5ad\")";

bool is_number(const Node& dataset) {
  const ElementKind kind = dataset.type().kind;
  return kind == ElementKind::integer || kind == ElementKind::real || kind == ElementKind::boolean;
}

Node table(const Node& root, const char* name) {
  std::optional<Node> found = root.find(name);
  if (!found)
    root.fail(cat("an AnnData file was wanted, this one has no ", name), "E-H5AD-MISSING",
              "check that the file is an .h5ad; 10x .h5 and loom files must be converted first");
  return *std::move(found);
}

void want_shape(const Node& node, int64_t rows, int64_t columns, int64_t n_obs, int64_t n_vars) {
  if (rows != n_obs || columns != n_vars)
    node.fail(cat("is ", rows, " x ", columns, ", the tables describe ", n_obs, " cells and ",
                  n_vars, " genes"),
              "E-H5AD-LAYOUT");
}

// Checks the three arrays of a sparse matrix against each other.
void describe_sparse(const Node& group, MatrixSlot& slot) {
  const std::vector<int64_t> shape = group.integers("shape");
  if (shape.size() != 2)
    group.fail(cat("attribute shape should hold 2 integers, it holds ", shape.size()),
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
  const std::string encoding = node.text("encoding-type").value_or("");
  if (node.has_attribute("h5sparse_format"))
    node.fail("is a sparse matrix in the layout of anndata before 0.7", "E-H5AD-OLD", kRewrite);
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
  describe_sparse(node, slot);
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
  Frame obs(table(root, "obs"), "obs");
  Frame var(table(root, "var"), "var");
  H5ad file(root, std::move(obs), std::move(var));
  if (file.n_obs() > limits::kCells)
    root.fail(cat("claims ", file.n_obs(), " cells, at most ", limits::kCells, " are read"),
              "E-SIZE");
  if (file.n_vars() > limits::kGenes)
    root.fail(cat("claims ", file.n_vars(), " genes, at most ", limits::kGenes, " are read"),
              "E-SIZE");
  if (root.has("raw.X"))
    root.fail("keeps raw.X beside X, the layout of anndata before 0.7", "E-H5AD-OLD", kRewrite);

  file.add_slot("X", "X", file.n_vars());
  if (const auto raw = root.find("raw"); raw && raw->is_group()) {
    file.raw_var_.emplace(table(*raw, "var"), "raw/var");
    if (file.raw_var_->size() > limits::kGenes)
      raw->fail(cat("claims ", file.raw_var_->size(), " genes"), "E-SIZE");
    file.add_slot("raw", "raw/X", file.raw_var_->size());
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
  return slot.path == "raw/X" ? raw_var_.value() : var_;
}

std::vector<std::string> H5ad::members(const char* group) const {
  const auto node = root_.find(group);
  if (!node || !node->is_group()) return {};
  return node->names();
}

H5ad::Embedding H5ad::obsm(const std::string& key) const {
  const Node node = root_.child("obsm").child(key);
  if (node.is_group() || node.shape().size() != 2 || !is_number(node))
    node.fail("a dense matrix of numbers was wanted", "E-H5AD-LAYOUT");
  if (node.shape()[0] != n_obs())
    node.fail(cat("has ", node.shape()[0], " rows, there are ", n_obs(), " cells"),
              "E-H5AD-LAYOUT");
  return {.dim = node.shape()[1], .values = node.read_all<float>()};
}

}  // namespace scgraft
