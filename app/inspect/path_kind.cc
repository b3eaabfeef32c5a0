// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "app/inspect/inspect.h"
#include "io/shard_index.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

std::string bytes_at(std::ifstream& file, int64_t offset, size_t count) {
  std::string bytes(count, '\0');
  file.clear();
  file.seekg(offset);
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  return bytes;
}

// The signature stands at 0, 512, 1024, 2048, ...: HDF5 allows a user block in front.
bool is_hdf5(std::ifstream& file, int64_t size) {
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  for (int64_t at = 0; at + 8 <= size; at = at == 0 ? 512 : at * 2)
    if (bytes_at(file, at, 8) == kSignature) return true;
  return false;
}

// A zip archive, or a header length followed by a JSON object.
bool is_weights(std::ifstream& file) {
  const std::string head = bytes_at(file, 0, 9);
  return head.starts_with("PK\x03\x04") || (head.size() == 9 && head[8] == '{');
}

[[noreturn]] void refuse(const std::string& path, const std::string& what, const char* code,
                         const std::string& hint = {}) {
  DataError error(cat(escaped(path), ": ", what), code);
  error.set_hint(hint);
  error.set_where(path);
  throw error;
}

PathKind folder_kind(const std::string& path) {
  const fs::path folder(path);
  if (fs::exists(folder / "adapter_config.json") ||
      fs::exists(folder / "adapter_model.safetensors"))
    return PathKind::adapter_folder;
  // A pre-training leaves a model in its run folder.
  if (fs::exists(folder / "args.json") && fs::exists(folder / "model.safetensors"))
    return PathKind::weights_folder;
  if (fs::exists(folder / "metrics.jsonl") || fs::exists(folder / "resolved_config.yaml"))
    return PathKind::run_folder;
  return PathKind::weights_folder;
}

}  // namespace

PathKind path_kind(const std::string& path) {
  std::error_code failure;
  const fs::file_status status = fs::status(path, failure);
  if (!fs::exists(status)) refuse(path, "there is no such file or folder", "E-NO-FILE");
  if (fs::is_directory(status)) return folder_kind(path);
  const std::string extension = fs::path(path).extension().string();
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) {
    StorageError error(cat("cannot read ", escaped(path)), "E-PERMISSION");
    error.set_where(path);
    throw error;
  }
  if (is_hdf5(file, static_cast<int64_t>(fs::file_size(path, failure)))) return PathKind::h5ad;
  // The readers say best what is wrong with a file that claims to be theirs.
  for (const char* mine : {".h5ad", ".h5"})
    if (extension == mine) return PathKind::h5ad;
  for (const char* weights : {".safetensors", ".pt", ".pth", ".bin", ".ckpt"})
    if (extension == weights) return PathKind::weights;
  if (is_weights(file) || is_shard_index(path)) return PathKind::weights;
  refuse(path, "this is no AnnData file, checkpoint, adapter or run", "E-INSPECT-KIND",
         "a .h5ad file, a .pt or .safetensors file, or a folder");
}

}  // namespace scgraft
