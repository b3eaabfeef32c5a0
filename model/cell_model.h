// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "io/h5ad.h"
#include "model/cell_network.h"
#include "model/cell_reader.h"

namespace scgraft {

// Which rows of a model make the embedding of a cell.
enum class CellEmbedding {
  standard,  // scGPT: the first row of the last layer, to be scaled to unit length; Geneformer:
             // mean over the genes' rows of the layer before the last; scBERT: mean over all rows;
             // scFoundation: rows of S and T, largest and mean over the genes' rows, side by side
  last,      // Geneformer: mean over the genes' rows of the last layer
  first,     // Geneformer: the first row of the last layer
  max,       // scFoundation: the largest over all rows
};
// "auto", "last", "cls" or "max". Throws ConfigError (E-EMBEDDING-KIND).
CellEmbedding parse_cell_embedding(std::string_view name);

struct CellModelOptions {
  int64_t classes = 0;  // of a fresh head; 0: no head
  uint64_t seed = 0;    // of that head
  CellEmbedding embedding = CellEmbedding::standard;
  // Folder of the files that name a model's genes, where they are not in its own: the dictionaries
  // of Geneformer, the genes.txt of scBERT, the table of genes of scFoundation.
  std::string dictionaries = {};
};

// A published model, ready to read cells, embed and classify them. The heads of its pre-training
// are left out.
class CellModel {
 public:
  virtual ~CellModel() = default;

  virtual CellNetwork& network() = 0;
  Backbone& backbone() { return network().backbone(); }
  // As in names of embeddings: "scGPT".
  virtual std::string_view title() const = 0;
  virtual const std::string& fingerprint() const = 0;  // of the weights; ties adapters to them

  // How the model's own cells are prepared.
  virtual Preparation preparation() const = 0;
  // Cells of at most so many genes. Throws ConfigError (E-PREPARE) where a model reads all of them.
  virtual void limit_genes(Preparation& preparation, int64_t genes) const = 0;
  // `ctx` and this outlive the reader; `file` is used here only. Throws DataError, ConfigError and
  // ModelError as the model's reader does; ModelError (E-PREPARE) for a preparation of another
  // model.
  virtual std::unique_ptr<CellReader> reader(Context& ctx, const H5ad& file,
                                             const Preparation& preparation) const = 0;
};

// Throws ConfigError (E-EMBEDDING-KIND) for another embedding than the standard one of a model that
// has no other.
void require_standard_embedding(const CellModelOptions& options, std::string_view title);

// Opens a checkpoint folder of any kind that folder_kind() tells. Throws ModelError as the loaders
// do, ConfigError (E-EMBEDDING-KIND) when the model has no such embedding.
std::unique_ptr<CellModel> open_cell_model(const std::string& folder,
                                           const CellModelOptions& options = {});

}  // namespace scgraft
