// SPDX-License-Identifier: Apache-2.0
#include "model/folder_kind.h"

#include <filesystem>

#include "io/json.h"
#include "io/text.h"
#include "model/cell_model.h"
#include "model/geneformer/cells.h"
#include "model/scbert/cells.h"
#include "model/scfoundation/cells.h"
#include "model/scgpt/cells.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

// A backbone is known by a key of its file of sizes; with an empty key, by the file.
struct Kind {
  const char* name;
  const char* file;
  const char* key;
  std::unique_ptr<CellModel> (*open)(const std::string& folder, const CellModelOptions& options);
};
constexpr Kind kKinds[] = {
    {"scgpt", "args.json", "", open_scgpt_cells},
    {"scfoundation", "models.ckpt", "", open_scfoundation_cells},
    {"geneformer", "config.json", "num_hidden_layers", open_geneformer_cells},
    {"scbert", "config.json", "dim_head", open_scbert_cells},
};

const Kind& kind_of(const std::string& folder) {
  namespace fs = std::filesystem;
  for (const Kind& kind : kKinds) {
    const std::string file = (fs::path(folder) / kind.file).string();
    std::error_code ignored;
    if (!fs::exists(file, ignored)) continue;
    if (*kind.key == '\0' || read_json(file, FileKind::model).contains(kind.key)) return kind;
  }
  ModelError error(cat(folder, ": no checkpoint folder of a model that this version runs"),
                   "E-MODEL-FOLDER");
  error.set_where(folder);
  error.set_hint(
      "scGPT: args.json, vocab.json and best_model.pt or model.safetensors; Geneformer: "
      "config.json "
      "and model.safetensors or pytorch_model.bin; scBERT: config.json and a .pth file; "
      "scFoundation: models.ckpt");
  throw error;
}

}  // namespace

std::string folder_kind(const std::string& folder) { return kind_of(folder).name; }

std::unique_ptr<CellModel> open_cell_model(const std::string& folder,
                                           const CellModelOptions& options) {
  return kind_of(folder).open(folder, options);
}

CellEmbedding parse_cell_embedding(std::string_view name) {
  if (name == "auto") return CellEmbedding::standard;
  if (name == "last") return CellEmbedding::last;
  if (name == "cls") return CellEmbedding::first;
  if (name == "max") return CellEmbedding::max;
  throw ConfigError(
      cat("no embedding is called \"", escaped(name, 40), "\": auto, last, cls or max"),
      "E-EMBEDDING-KIND");
}

void require_standard_embedding(const CellModelOptions& options, std::string_view title) {
  if (options.embedding == CellEmbedding::standard) return;
  throw ConfigError(cat(title, " has one kind of embedding of a cell"), "E-EMBEDDING-KIND");
}

}  // namespace scgraft
