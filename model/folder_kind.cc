// SPDX-License-Identifier: Apache-2.0
#include "model/folder_kind.h"

#include <filesystem>

#include "io/json.h"
#include "io/text.h"
#include "model/cell_model.h"
#include "model/geneformer/cells.h"
#include "model/model_folder.h"
#include "model/scbert/cells.h"
#include "model/scfoundation/cells.h"
#include "model/scgpt/cells.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

// A loaded folder of any backbone, by the functions of its load.h.
template <auto Load, auto Save>
class LoadedFolder : public ModelFolder {
 public:
  LoadedFolder(const std::string& folder, const ModelFolderOptions& options)
      : model_(Load(folder, {.new_head_classes = options.classes, .seed = options.seed})) {}

  Backbone& backbone() override { return *model_.network; }
  const std::string& fingerprint() const override { return model_.fingerprint; }
  const std::vector<std::string>& ignored() const override { return model_.ignored; }
  void save(const std::string& folder, const std::vector<std::string>& labels) const override {
    Save(folder, model_, labels);
  }

 private:
  decltype(Load({}, {})) model_;
};

template <auto Load, auto Save>
std::unique_ptr<ModelFolder> whole(const std::string& folder, const ModelFolderOptions& options) {
  return std::make_unique<LoadedFolder<Load, Save>>(folder, options);
}

ScfoundationModel load_cell_branch(const std::string& folder, ScfoundationLoadOptions options) {
  options.branch = "cell";
  return load_scfoundation(folder, options);
}

// A backbone is known by a key of its file of sizes; with an empty key, by the file.
struct Kind {
  const char* name;
  const char* file;
  const char* key;
  std::unique_ptr<CellModel> (*open)(const std::string& folder, const CellModelOptions& options);
  std::unique_ptr<ModelFolder> (*open_whole)(const std::string& folder,
                                             const ModelFolderOptions& options);
};
constexpr Kind kKinds[] = {
    {"scgpt", "args.json", "", open_scgpt_cells, whole<load_scgpt, save_scgpt>},
    {"scfoundation", "models.ckpt", "", open_scfoundation_cells,
     whole<load_cell_branch, save_scfoundation>},
    {"scfoundation", "config.json", "bin_num", open_scfoundation_cells,
     whole<load_cell_branch, save_scfoundation>},
    {"geneformer", "config.json", "num_hidden_layers", open_geneformer_cells,
     whole<load_geneformer, save_geneformer>},
    {"scbert", "config.json", "dim_head", open_scbert_cells, whole<load_scbert, save_scbert>},
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
      "and model.safetensors or pytorch_model.bin, whole or in shards with their index; scBERT: "
      "config.json and a .pth file; "
      "scFoundation: models.ckpt, or config.json and model.safetensors of one branch");
  throw error;
}

}  // namespace

std::string folder_kind(const std::string& folder) { return kind_of(folder).name; }

std::unique_ptr<CellModel> open_cell_model(const std::string& folder,
                                           const CellModelOptions& options) {
  return kind_of(folder).open(folder, options);
}

std::unique_ptr<ModelFolder> open_model_folder(const std::string& folder,
                                               const ModelFolderOptions& options) {
  return kind_of(folder).open_whole(folder, options);
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
