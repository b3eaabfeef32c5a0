// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint_source.h"

namespace scgraft {
namespace {

template <class Names>
std::string first_five(const Names& names) {
  std::string text;
  int n = 0;
  for (const std::string& name : names) {
    if (++n > 5) break;
    text += (n > 1 ? ", " : "") + name;
  }
  if (names.size() > 5) text += cat(" and ", names.size() - 5, " more");
  return text;
}

[[noreturn]] void fail(const std::string& file, const std::string& message, const char* code,
                       const std::string& hint) {
  ModelError error(cat(file, ": ", message), code);
  error.set_where(file);
  error.set_hint(hint);
  throw error;
}

}  // namespace

CheckpointSource::CheckpointSource(const Checkpoint& file, DType dtype,
                                   const std::function<std::string(const std::string&)>& canonical)
    : file_(file), dtype_(dtype) {
  for (const TensorInfo& info : file.tensors()) {
    const std::string name = canonical(info.name);
    if (!names_.contains(name) || info.name == name) names_[name] = info.name;
  }
}

const std::string& CheckpointSource::name_in_file(const std::string& name) const {
  const auto found = names_.find(name);
  return found == names_.end() ? name : found->second;
}

int64_t CheckpointSource::rows(const std::string& name) const {
  const TensorInfo& found = file_.info(name_in_file(name));
  return found.dims.empty() ? 0 : found.dims[0];
}

int64_t CheckpointSource::columns(const std::string& name) const {
  const TensorInfo& found = file_.info(name_in_file(name));
  return found.dims.size() < 2 ? 0 : found.dims[1];
}

Tensor CheckpointSource::take(const std::string& name, const Shape& shape) {
  if (!has(name)) {
    missing_.insert(name);
    return Tensor({0}, dtype_);
  }
  used_.insert(name);
  const Tensor& tensor = file_.tensor(names_.at(name));
  if (tensor.shape() != shape && misshaped_.empty())
    misshaped_ = cat(name, " is ", tensor.shape(), ", ", shape, " was wanted");
  const bool counts = tensor.dtype() == DType::i64 || tensor.dtype() == DType::i32;
  return counts || tensor.dtype() == dtype_ ? tensor.share() : tensor.converted(dtype_);
}

void CheckpointSource::check(const std::string& sizes) const {
  const std::string folder = file_.file().substr(0, file_.file().find_last_of('/'));
  if (!missing_.empty())
    fail(file_.file(),
         cat(missing_.size(), " tensors of the network are missing: ", first_five(missing_)),
         "E-TENSOR-MISSING", cat("compare ", sizes, " with the file: scgraft inspect ", folder));
  if (!misshaped_.empty())
    fail(file_.file(), cat(misshaped_, " by ", sizes), "E-TENSOR-SHAPE",
         cat("use the ", sizes, " that belongs to this checkpoint"));
}

std::vector<std::string> CheckpointSource::ignored(
    const std::function<bool(const std::string&)>& without_use,
    const std::function<bool(const std::string&)>& claims) const {
  std::vector<std::string> ignored, extra;
  for (const auto& [name, original] : names_) {
    if (used_.contains(name)) continue;
    if (without_use(name))
      ignored.push_back(original);
    else if (!claims || !claims(original))
      extra.push_back(original);
  }
  if (extra.empty()) return ignored;
  const std::string folder = file_.file().substr(0, file_.file().find_last_of('/'));
  fail(file_.file(),
       cat(extra.size(), " tensors are not part of this network: ", first_five(extra)),
       "E-TENSOR-EXTRA", cat("scgraft inspect ", folder, " lists them"));
}

}  // namespace scgraft
