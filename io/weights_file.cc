// SPDX-License-Identifier: Apache-2.0
#include "io/weights_file.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "io/mapped_file.h"
#include "io/text.h"
#include "io/torch_storages.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

[[noreturn]] void fail(const std::string& file, const std::string& message,
                       const std::string& hint) {
  throw_file_error(FileKind::model, file, message, "E-CHECKPOINT", hint);
}

bool starts_with(std::span<const std::byte> bytes, std::string_view text) {
  return bytes.size() >= text.size() && std::memcmp(bytes.data(), text.data(), text.size()) == 0;
}

// The part of a path before the last slash.
std::string group_of(const std::string& name) {
  const size_t slash = name.rfind('/');
  return slash == std::string::npos ? "" : name.substr(0, slash);
}

bool is_under(const std::string& name, const std::string& section) {
  return name.size() > section.size() && name.compare(0, section.size(), section) == 0 &&
         name[section.size()] == '/';
}

std::string choose_section(const std::string& file, const std::vector<TensorInfo>& tensors,
                           const std::string& wanted) {
  std::set<std::string> groups;
  for (const TensorInfo& info : tensors) groups.insert(group_of(info.name));
  const auto has = [&](const std::string& section) {
    return std::any_of(tensors.begin(), tensors.end(),
                       [&](const TensorInfo& info) { return is_under(info.name, section); });
  };
  if (!wanted.empty()) {
    if (has(wanted)) return wanted;
    fail(file,
         cat("has no tensors under \"", escaped(wanted), "\", only under: ", escaped_list(groups)),
         "name one of these");
  }
  if (groups.empty() || groups.count("")) return "";
  for (const char* known :
       {"model_state_dict", "state_dict", "model", "module", "net", "gene/state_dict"})
    if (has(known)) return known;
  std::set<std::string> weights;
  for (const std::string& group : groups)
    if (group.find("optim") == std::string::npos) weights.insert(group);
  if (weights.size() == 1) return *weights.begin();
  fail(file, cat("holds several groups of tensors: ", escaped_list(groups)),
       "say which one holds the weights");
}

}  // namespace

WeightsFile WeightsFile::open(const std::string& path, const std::string& section) {
  WeightsFile out;
  out.path_ = path;
  const auto file = MappedFile::open(path, FileKind::model);
  const auto bytes = file->bytes();
  if (bytes.empty()) fail(path, "is empty, weights are needed", "fetch it again");
  // The length of a safetensors header may begin like anything; what follows it is a brace.
  const bool safetensors = bytes.size() > 8 && bytes[8] == std::byte{'{'};
  const bool torch = starts_with(bytes, "PK") || TorchStream::begins(bytes);
  if (starts_with(bytes, "\x80") && !safetensors && !torch)
    fail(path, "is a bare pickle, not a PyTorch file or a safetensors file",
         "where you trust it, load it in Python and save its state dict with torch.save or as "
         "safetensors");
  const std::vector<TensorInfo>* all = nullptr;
  if (torch) {
    out.torch_ = std::make_unique<TorchCheckpoint>(TorchCheckpoint::parse(bytes, path, file));
    out.section_ = choose_section(path, out.torch_->tensors(), section);
    out.values_ = out.torch_->values();
    all = &out.torch_->tensors();
  } else {
    out.safetensors_ = std::make_unique<Safetensors>(Safetensors::parse(bytes, path, file));
    if (!section.empty())
      fail(path, cat("is a safetensors file, it has no section \"", escaped(section), "\""),
           "leave the section out");
    out.values_ = out.safetensors_->metadata();
    all = &out.safetensors_->tensors();
  }
  if (!out.section_.empty()) out.prefix_ = out.section_ + "/";
  for (const TensorInfo& info : *all) {
    const bool nested = out.torch_ && info.name.find('/') != std::string::npos;
    if (out.prefix_.empty() ? nested : !is_under(info.name, out.section_)) continue;
    out.tensors_.emplace_back(info).name.erase(0, out.prefix_.size());
  }
  return out;
}

bool WeightsFile::contains(std::string_view name) const {
  const std::string full = cat(prefix_, name);
  return safetensors_ ? safetensors_->contains(full) : torch_->contains(full);
}

Tensor WeightsFile::tensor(std::string_view name) const {
  const std::string full = cat(prefix_, name);
  return safetensors_ ? safetensors_->tensor(full) : torch_->tensor(full);
}

void WeightsFile::digest(std::string_view name, Sha256& digest) const {
  if (safetensors_) return digest.update(safetensors_->bytes(name));
  const Buffer content = torch_->content(cat(prefix_, name));
  digest.update(std::span(static_cast<const std::byte*>(content.data()),
                          static_cast<size_t>(content.nbytes())));
}

}  // namespace scgraft
