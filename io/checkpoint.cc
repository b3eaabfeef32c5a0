// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "io/sha256.h"
#include "io/shard_index.h"
#include "io/storage_error.h"
#include "io/text.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& file, const std::string& message,
                       const std::string& hint) {
  throw_file_error(FileKind::model, file, message, "E-CHECKPOINT", hint);
}

[[noreturn]] void fail_shards(const std::string& index, const std::string& message) {
  throw_file_error(FileKind::model, index, message, "E-SHARDS", "copy the whole folder again");
}

std::string file_name(const WeightsFile& file) {
  return escaped(fs::path(file.path()).filename().string());
}

// Whether a file is one of several that hold a model together: NAME-00001-of-00002.EXTENSION.
bool is_shard(const std::string& name) {
  const size_t of = name.find("-of-");
  return of != std::string::npos && of >= 6 && name[of - 6] == '-' &&
         name.find_first_not_of("0123456789", of - 5) == of;
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
  const auto i = static_cast<size_t>(&info(name) - tensors_.data());
  return made_.emplace(name, files_[file_of_[i]].tensor(name)).first->second;
}

std::string Checkpoint::fingerprint() const {
  Sha256 digest;
  for (const auto& [name, i] : index_) {
    const TensorInfo& info = tensors_[i];
    const std::string type(info.dtype ? name_of(*info.dtype) : info.dtype_name);
    digest.update(cat(name.size(), ":", name, " ", type, " ", info.dims_text(), "\n"));
    files_[file_of_[i]].digest(name, digest);
  }
  return digest.finish();
}

void Checkpoint::add(WeightsFile file) {
  for (const TensorInfo& info : file.tensors()) {
    const auto [at, is_new] = index_.emplace(info.name, tensors_.size());
    if (!is_new)
      fail_shards(file_, cat("the tensor \"", escaped(info.name), "\" is in two of its files, ",
                             file_name(files_[file_of_[at->second]]), " and ", file_name(file)));
    tensors_.push_back(info);
    file_of_.push_back(files_.size());
  }
  files_.push_back(std::move(file));
}

void Checkpoint::add_shards() {
  const ShardIndex index = ShardIndex::read(file_);
  for (const std::string& shard : index.shards) add(WeightsFile::open(shard));
  const auto name = [&](size_t shard) { return file_name(files_[shard]); };
  for (const auto& [tensor, shard] : index.weight_map) {
    const auto at = index_.find(tensor);
    if (at == index_.end() || file_of_[at->second] != shard)
      fail_shards(file_, cat("puts the tensor \"", escaped(tensor), "\" into ", name(shard), ", ",
                             at == index_.end() ? "which does not have it"
                                                : cat("it is in ", name(file_of_[at->second]))));
  }
  for (size_t i = 0; i < tensors_.size(); ++i)
    if (!index.weight_map.contains(tensors_[i].name))
      fail_shards(file_, cat("does not name the tensor \"", escaped(tensors_[i].name), "\" of ",
                             name(file_of_[i])));
  values_ = index.metadata;
}

Checkpoint open_checkpoint(const std::string& path, const std::string& section) {
  Checkpoint out;
  std::error_code ignored;
  out.file_ = fs::is_directory(path, ignored) ? find_checkpoint(path) : path;
  if (is_shard_index(out.file_)) {
    if (!section.empty())
      fail(out.file_,
           cat("is the index of several files, it has no section \"", escaped(section), "\""),
           "leave the section out");
    out.add_shards();
    return out;
  }
  out.add(WeightsFile::open(out.file_, section));
  out.section_ = out.files_.front().section();
  out.values_ = out.files_.front().values();
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
  constexpr const char* kWhole = "model.safetensors";
  constexpr const char* kWholeTorch = "pytorch_model.bin";
  const std::string shards = cat(kWhole, ".index.json"),
                    torch_shards = cat(kWholeTorch, ".index.json");
  std::set<std::string> known, other, indexes;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name == kWhole) return it->path().string();
    if (name == shards || name == torch_shards) indexes.insert(name);
    if (usual.count(name))
      known.insert(name);
    else if (extensions.count(it->path().extension().string()) && !not_weights.count(name) &&
             name[0] != '.')
      other.insert(name);
  }
  if (error) throw_storage_error("read the folder", folder, error.value());
  if (indexes.count(shards)) return (fs::path(folder) / shards).string();
  if (indexes.count(torch_shards) && !known.count(kWholeTorch)) known.insert(torch_shards);
  const std::set<std::string>& found = known.empty() ? other : known;
  if (std::any_of(found.begin(), found.end(), is_shard))
    fail(folder,
         cat("has its weights in several files (", escaped_list(found), ") and not their index"),
         cat("copy ", shards, " or ", torch_shards, " into it too"));
  if (found.size() == 1) return (fs::path(folder) / *found.begin()).string();
  if (found.empty())
    fail(folder,
         "holds no weights (model.safetensors, best_model.pt, model.pt, "
         "pytorch_model.bin ...)",
         "give the folder or the file of a model");
  fail(folder, cat("holds several files of weights: ", escaped_list(found)),
       "give the path of one of them");
}

}  // namespace scgraft
