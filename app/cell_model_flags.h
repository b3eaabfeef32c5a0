// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "training/annotator.h"

namespace CLI {
class App;
}

namespace scgraft {

class Session;

// Which model reads the cells of a verb that needs no labels, and how it finds their genes.
struct CellModelFlags {
  std::string model, adapter, gene_key, layer = "auto", dictionaries;
  bool allow_base_mismatch = false;
};
void add_cell_model_flags(CLI::App& verb, CellModelFlags& flags);

// A frozen model, or one with an adapter attached, in the precision of the session; what is
// attached is on its device. Throws ConfigError (E-MISSING) when neither was given; as
// open_cell_model() and Annotator.
class OpenedCellModel {
 public:
  OpenedCellModel(Session& session, const CellModelFlags& flags,
                  CellEmbedding embedding = CellEmbedding::standard);

  CellModel& model() { return annotator_ ? annotator_->model() : *frozen_; }
  // As the model or the adapter has it, with what the flags say.
  Preparation preparation() const { return preparation_; }

 private:
  std::optional<Annotator> annotator_;
  std::unique_ptr<CellModel> frozen_;
  Preparation preparation_;
};

}  // namespace scgraft
