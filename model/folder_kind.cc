// SPDX-License-Identifier: Apache-2.0
#include "model/folder_kind.h"

#include <filesystem>

#include "io/json.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

// A backbone is known by a key of its file of sizes; with an empty key, by the file.
struct Kind {
  const char* name;
  const char* file;
  const char* key;
};
constexpr Kind kKinds[] = {
    {"scgpt", "args.json", ""},
    {"geneformer", "config.json", "num_hidden_layers"},
    {"scbert", "config.json", "dim_head"},
};

}  // namespace

std::string folder_kind(const std::string& folder) {
  namespace fs = std::filesystem;
  for (const Kind& kind : kKinds) {
    const std::string file = (fs::path(folder) / kind.file).string();
    std::error_code ignored;
    if (!fs::exists(file, ignored)) continue;
    if (*kind.key == '\0' || read_json(file, FileKind::model).contains(kind.key)) return kind.name;
  }
  ModelError error(cat(folder, ": no checkpoint folder of a model that this version runs"),
                   "E-MODEL-FOLDER");
  error.set_where(folder);
  error.set_hint(
      "scGPT: args.json, vocab.json and best_model.pt or model.safetensors; Geneformer: "
      "config.json "
      "and model.safetensors or pytorch_model.bin; scBERT: config.json and a .pth file");
  throw error;
}

}  // namespace scgraft
