// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "adapters/store.h"
#include "io/h5ad.h"
#include "model/cell_model.h"
#include "training/baselines.h"
#include "training/classification.h"
#include "training/run_events.h"

namespace scgraft {

// What is said about each cell of a file, in its order.
struct Annotation {
  std::vector<int32_t> label;       // [cells] class, -1: no gene of the cell is known
  std::vector<int32_t> second;      // [cells] runner-up
  std::vector<float> confidence;    // [cells] probability of the label, 0..1
  std::vector<float> margin;        // [cells] first minus second probability
  std::vector<float> entropy;       // [cells] nats
  Tensor probabilities;             // [cells, classes] f32
  Tensor embedding;                 // [cells, dim] f32, as embed_file() gives it
  std::vector<int32_t> logistic;    // [cells] baseline: logistic regression on expression
  std::vector<int32_t> neighbours;  // [cells] baseline: nearest neighbours on expression
  int64_t without_genes = 0;
  GeneMatch genes;
  SlotChoice slot;
};

struct AnnotatorOptions {
  std::string model = {};  // backbone folder; empty: the one the adapter names
  // Folder of the files that name the model's genes; empty: as in training.
  std::string dictionaries = {};
  CellEmbedding embedding = CellEmbedding::standard;
  bool allow_base_mismatch = false;
  DType product = DType::f32;
};

// An adapter directory and its backbone, ready to annotate files.
class Annotator {
 public:
  Annotator(const std::string& adapter, const AnnotatorOptions& options);

  const std::vector<std::string>& labels() const { return loaded_.bundle.labels; }
  const AdapterBundle& bundle() const { return loaded_.bundle; }
  CellModel& model() { return *model_; }
  // As in training.
  const Preparation& preparation() const { return preparation_; }
  // The model and the adapter attached to it; annotate() does this by itself.
  void move_to(Device device);
  // SHA-256 of its manifest.
  const std::string& adapter_fingerprint() const { return fingerprint_; }

  // gene_key and layer replace what training used where they are not empty. Throws StoppedError
  // when events.stop_requested says so.
  Annotation annotate(Context& ctx, const H5ad& file, const std::string& gene_key,
                      const std::string& layer, const RunEvents& events);

 private:
  LoadedBundle loaded_;
  std::unique_ptr<CellModel> model_;
  Preparation preparation_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<CellClassification> classification_;
  std::unique_ptr<Baselines> baselines_;
  std::string fingerprint_;
};

// Cell embeddings of a model (with whatever is attached to it, which must be on the context's
// device), of unit length where the model's are, NaN where no gene of the cell is known. Stops as
// Annotator::annotate does.
struct Embeddings {
  Tensor values;  // [cells, dim] f32
  int64_t without_genes = 0;
  GeneMatch genes;
  SlotChoice slot;
};
Embeddings embed_file(Context& ctx, const H5ad& file, CellModel& model,
                      const Preparation& preparation, const RunEvents& events);

}  // namespace scgraft
