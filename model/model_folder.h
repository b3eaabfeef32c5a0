// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/backbone.h"

namespace scgraft {

struct ModelFolderOptions {
  int64_t classes = 0;  // of a fresh head of cell classes in place of the file's heads; 0: theirs
  uint64_t seed = 0;    // of that head
};

// A checkpoint folder in memory with all of its heads, to be written again: converted, or with an
// adapter in its weights. What runs cells is CellModel (model/cell_model.h).
class ModelFolder {
 public:
  virtual ~ModelFolder() = default;

  virtual Backbone& backbone() = 0;
  virtual const std::string& fingerprint() const = 0;  // of the weights
  virtual const std::vector<std::string>& ignored()
      const = 0;  // tensors that save() does not write

  // Writes what open_model_folder() and open_cell_model() read: model.safetensors, the sizes as the
  // model's own format has them, and the files that name its genes, where they were in its folder.
  // `folder` must exist.
  //   labels  names of the classes of its head, for labels.json and, where it has a place for them,
  //           the file of sizes; empty: there are none
  // Throws StorageError.
  virtual void save(const std::string& folder, const std::vector<std::string>& labels) const = 0;
};

// Opens a folder of any kind that folder_kind() tells; of scFoundation its branch "cell", the one
// that runs cells. Throws ModelError as the loaders do.
std::unique_ptr<ModelFolder> open_model_folder(const std::string& folder,
                                               const ModelFolderOptions& options = {});

// For loaders: copies the files of a folder whose names hold one of `parts`, and writes
// labels.json, or copies that too where there are no labels. Throws StorageError.
void save_beside(const std::string& from, const std::string& to,
                 std::span<const std::string_view> parts, const std::vector<std::string>& labels);

}  // namespace scgraft
