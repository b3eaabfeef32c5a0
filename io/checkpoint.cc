// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "io/mapped_file.h"
#include "io/sha256.h"
#include "io/storage_error.h"
#include "io/text.h"
#include "io/torch_storages.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& file, const std::string& message,
                       const std::string& hint) {
  throw_file_error(FileKind::model, file, message, "E-CHECKPOINT", hint);
}

// Whether a file is one of several that hold a model together: NAME-00001-of-00002.EXTENSION.
bool is_shard(const std::string& name) {
  const size_t of = name.find("-of-");
  return of != std::string::npos && of >= 6 && name[of - 6] == '-' &&
         name.find_first_not_of("0123456789", of - 5) == of;
}

std::string list(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += cat(text.empty() ? "" : ", ", escaped(name));
  return text;
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
    fail(file, cat("has no tensors under \"", escaped(wanted), "\", only under: ", list(groups)),
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
  fail(file, cat("holds several groups of tensors: ", list(groups)),
       "say which one holds the weights");
}

}  // namespace

const TensorInfo& Checkpoint::info(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    throw_file_error(FileKind::model, file_,
                     cat("has no tensor \"", escaped(name), "\" among its ", tensors_.size()),
                     "E-TENSOR-MISSING", "the file may belong to another kind of model",
                     escaped(name));
  return tensors_[found->second];
}

const Tensor& Checkpoint::tensor(std::string_view name) const {
  const auto found = made_.find(name);
  if (found != made_.end()) return found->second;
  const std::string full = prefix_ + info(name).name;
  Tensor made = safetensors_ ? safetensors_->tensor(full) : torch_->tensor(full);
  return made_.emplace(name, std::move(made)).first->second;
}

std::string Checkpoint::fingerprint() const {
  Sha256 digest;
  for (const auto& [name, i] : index_) {
    const TensorInfo& info = tensors_[i];
    const std::string type(info.dtype ? name_of(*info.dtype) : info.dtype_name);
    digest.update(cat(name.size(), ":", name, " ", type, " ", info.dims_text(), "\n"));
    if (safetensors_) {
      digest.update(safetensors_->bytes(name));
    } else {
      const Buffer content = torch_->content(prefix_ + name);
      digest.update(std::span(static_cast<const std::byte*>(content.data()),
                              static_cast<size_t>(content.nbytes())));
    }
  }
  return digest.finish();
}

Checkpoint open_checkpoint(const std::string& path, const std::string& section) {
  Checkpoint out;
  std::error_code ignored;
  out.file_ = fs::is_directory(path, ignored) ? find_checkpoint(path) : path;
  const auto file = MappedFile::open(out.file_, FileKind::model);
  const auto bytes = file->bytes();
  if (bytes.empty()) fail(out.file_, "is empty, weights are needed", "fetch it again");
  // The length of a safetensors header may begin like anything; what follows it is a brace.
  const bool safetensors = bytes.size() > 8 && bytes[8] == std::byte{'{'};
  const bool torch = starts_with(bytes, "PK") || TorchStream::begins(bytes);
  if (starts_with(bytes, "\x80") && !safetensors && !torch)
    fail(out.file_, "is a bare pickle, not a PyTorch file or a safetensors file",
         "where you trust it, load it in Python and save its state dict with torch.save or as "
         "safetensors");
  const std::vector<TensorInfo>* all = nullptr;
  if (torch) {
    out.torch_ = std::make_unique<TorchCheckpoint>(TorchCheckpoint::parse(bytes, out.file_, file));
    out.section_ = choose_section(out.file_, out.torch_->tensors(), section);
    out.values_ = out.torch_->values();
    all = &out.torch_->tensors();
  } else {
    out.safetensors_ = std::make_unique<Safetensors>(Safetensors::parse(bytes, out.file_, file));
    if (!section.empty())
      fail(out.file_, cat("is a safetensors file, it has no section \"", escaped(section), "\""),
           "leave the section out");
    out.values_ = out.safetensors_->metadata();
    all = &out.safetensors_->tensors();
  }
  if (!out.section_.empty()) out.prefix_ = out.section_ + "/";
  for (const TensorInfo& info : *all) {
    const bool nested = out.torch_ && info.name.find('/') != std::string::npos;
    if (out.prefix_.empty() ? nested : !is_under(info.name, out.section_)) continue;
    TensorInfo& kept = out.tensors_.emplace_back(info);
    kept.name.erase(0, out.prefix_.size());
    out.index_.emplace(kept.name, out.tensors_.size() - 1);
  }
  return out;
}

std::string find_checkpoint(const std::string& folder) {
  const std::set<std::string> extensions = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"};
  const std::set<std::string> usual = {"best_model.pt", "model.pt", "pytorch_model.bin",
                                       "panglao_pretrain.pth", "panglao_pretrained.pth"};
  const std::set<std::string> not_weights = {"adapter_model.bin", "adapter_model.safetensors",
                                             "optimizer.bin",     "optimizer.pt",
                                             "rng_state.pth",     "scheduler.pt",
                                             "scaler.pt",         "training_args.bin"};
  std::set<std::string> known, other;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name == "model.safetensors") return it->path().string();
    if (usual.count(name))
      known.insert(name);
    else if (extensions.count(it->path().extension().string()) && !not_weights.count(name) &&
             name[0] != '.')
      other.insert(name);
  }
  if (error) throw_storage_error("read the folder", folder, error.value());
  const std::set<std::string>& found = known.empty() ? other : known;
  if (std::any_of(found.begin(), found.end(), is_shard))
    fail(folder,
         cat("has its weights in several files (", list(found), "), this version reads one"),
         "load the model in Python and save it with a max_shard_size beyond its size");
  if (found.size() == 1) return (fs::path(folder) / *found.begin()).string();
  if (found.empty())
    fail(folder,
         "holds no weights (model.safetensors, best_model.pt, model.pt, "
         "pytorch_model.bin ...)",
         "give the folder or the file of a model");
  fail(folder, cat("holds several files of weights: ", list(found)),
       "give the path of one of them");
}

}  // namespace scgraft
