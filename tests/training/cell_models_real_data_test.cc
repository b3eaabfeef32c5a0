// SPDX-License-Identifier: Apache-2.0
// Tiny random models of every backbone learn real cells: 165 of eleven purified populations, of
// which four are learned; genes are named by symbols.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>

#include "adapters/adapter.h"
#include "io/h5ad_rows.h"
#include "io/sha256.h"
#include "model/scgpt/load.h"
#include "tests/training/tiny_models.h"
#include "tests/training/tiny_study.h"
#include "training/annotator.h"
#include "training/cell_sources.h"
#include "training/classification.h"
#include "training/fine_tune.h"
#include "training/labelled_data.h"
#include "training/predict.h"

namespace scgraft {
namespace {

constexpr const char* kCells = "data/zheng68k_165cells_counts.h5ad";
constexpr const char* kVocabulary = "data/vocab/geneformer_v1_";
// Of the models that know few genes: the rows of a cell come together in averages, and of many
// genes these are the same in all cells.
constexpr int64_t kGenes = 60;
// All cells in every step. In batches of 20 a step follows which types are in it, and after thirty
// a model knows how frequent they are and no more.
constexpr int64_t kBatch = 60;
constexpr double kRate = 1e-2;
constexpr int64_t kRank = 4;  // and alpha
// Of fresh heads. scBERT's begins with one number of every row and a relu: with 0 these are
// negative in all rows of a tiny model, and nothing is learned.
constexpr uint64_t kSeed = 2;
// Four of the populations, which differ more than kinds of T cells do.
const std::vector<std::string> kTypes = {"CD14+ Monocyte", "CD19+ B", "CD34+", "CD56+ NK"};

// The genes whose normalised expression varies most over the cells, in the order of the file.
std::vector<std::string> varying_genes(const H5ad& file) {
  const auto columns = static_cast<size_t>(file.n_vars());
  std::vector<double> sum(columns), square(columns);
  RowReader reader(file, "X");
  for (SparseRows rows; reader.next(rows);)
    for (int64_t r = 0; r < rows.rows(); ++r) {
      const auto values = rows.values_of(r);
      const double total = std::accumulate(values.begin(), values.end(), 0.0);
      for (size_t k = 0; k < values.size(); ++k) {
        const double x = std::log1p(1e4 * static_cast<double>(values[k]) / total);
        const auto gene = static_cast<size_t>(rows.columns_of(r)[k]);
        sum[gene] += x;
        square[gene] += x * x;
      }
    }
  const auto cells = static_cast<double>(file.n_obs());
  const auto variance = [&](size_t g) { return square[g] / cells - std::pow(sum[g] / cells, 2); };
  std::vector<size_t> order(columns);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return variance(a) > variance(b); });
  order.resize(kGenes);
  std::sort(order.begin(), order.end());
  std::vector<std::string> genes;
  for (const size_t g : order) genes.push_back(file.var().index()[g]);
  return genes;
}

// Projections are wide enough for a cell's first row to tell cells apart.
void write_scgpt(const std::string& folder, std::span<const std::string> genes) {
  ScgptModel model;
  model.vocabulary.append_specials();
  for (const std::string& gene : genes) model.vocabulary.append(gene);
  model.config.vocab = model.vocabulary.size();
  model.config.dim = 16;
  model.config.heads = 2;
  model.config.layers = 2;
  model.config.ffn = 16;
  model.config.dropout = 0;
  model.config.max_seq_len = std::ssize(genes) + 1;
  model.network = std::make_unique<ScgptNetwork>(
      model.config, ScgptNetwork::Heads{.decoder = true, .mvc = true, .classes = 0},
      [](const std::string& name, const Shape& shape) {
        Parameter p{name, scgpt_initialiser(1)(name, shape), {}};
        if (shape.rank() == 2 && name.find("ncoder") != std::string::npos)
          initialise_uniform(p, 0.5, 1);
        return std::move(p.value);
      });
  make_directory(folder);
  save_scgpt(folder, model);
}

// With all tokens of the published V1 and its names of genes, and a pooler, as files of BertModel
// have one.
void write_published_geneformer(const std::string& folder) {
  make_directory(folder);
  GeneformerNetwork network(tiny_geneformer_config(25426, 256), {.words = false, .pooler = true},
                            tiny_geneformer_values(1));
  save_parameters(network, folder);
  write_json(folder + "/config.json", network.config().to_json(), Overwrite::replace);
  for (const char* file : {"token_dictionary.json", "gene_median_dictionary.json"})
    std::filesystem::copy(shared_path(std::string(kVocabulary) + file), cat(folder, "/", file));
  std::filesystem::copy(shared_path(cat(kVocabulary, "gene_name_id_dict.json")),
                        folder + "/gene_name_id_dict.json");
}

// The cells that are learned, and a model of each kind that knows their genes, made when first
// asked for.
class RealCells {
 public:
  static RealCells& get() {
    static RealCells cells;
    return cells;
  }

  const H5ad& file() const { return file_; }
  const RunConfig::Data& data() const { return data_; }
  const CellSelection& selection() const { return selection_; }
  const std::string& model(const std::string& kind) {
    if (models_.contains(kind)) return models_[kind];
    const std::string folder = folder_ / kind;
    if (kind == "geneformer")
      write_published_geneformer(folder);
    else if (kind == "scbert")
      write_scbert(folder, genes_);
    else if (kind == "scfoundation")
      write_scfoundation(folder, genes_);
    else
      write_scgpt(folder, genes_);
    return models_[kind] = folder;
  }
  // The tokens of the cells, as the model reads them.
  const TokenStore& tokens(const std::string& kind) {
    if (!data_of_.contains(kind)) {
      const auto model = open_cell_model(this->model(kind), {.classes = 4});
      const auto reader = model->reader(ctx_, file_, model->preparation());
      read_cells(*reader, file_, selection_.rows, {}, data_of_[kind]);
    }
    return data_of_[kind].tokens;
  }
  std::string fresh(const std::string& name) { return folder_ / cat(++names_, "-", name); }

 private:
  RealCells() : file_(H5ad::open(shared_path(kCells))), genes_(varying_genes(file_)) {
    data_.train = shared_path(kCells);
    data_.label_key = "celltype";
    for (const std::string& type : as_categorical(file_.obs().read("celltype")).categories)
      if (std::find(kTypes.begin(), kTypes.end(), type) == kTypes.end())
        data_.exclude_labels.push_back(type);
    selection_ = select_labelled_cells(file_, data_);
  }

  TemporaryFolder folder_;
  Context ctx_{Device::cpu(), {.threads = 1}};
  H5ad file_;
  std::vector<std::string> genes_;
  RunConfig::Data data_;
  CellSelection selection_;
  std::map<std::string, std::string> models_;
  std::map<std::string, CellData> data_of_;
  int names_ = 0;
};

std::string hash_of(const Parameter& p) {
  Sha256 digest;
  const ConstTensorView view = std::as_const(p.value).view();
  digest.update(
      std::span(static_cast<const std::byte*>(view.data()), static_cast<size_t>(p.value.nbytes())));
  return digest.finish();
}
std::map<const Parameter*, std::string> hashes_of(const std::vector<Parameter*>& parameters) {
  std::map<const Parameter*, std::string> hashes;
  for (const Parameter* p : parameters) hashes[p] = hash_of(*p);
  return hashes;
}

using Run = std::tuple<const char*, const char*>;  // model, adapter

std::string name_of_run(const ::testing::TestParamInfo<Run>& run) {
  std::string name = cat(std::get<0>(run.param), "_", std::get<1>(run.param));
  std::replace(name.begin(), name.end(), '+', '_');
  return name;
}

class CellModelsRealDataTest : public ::testing::TestWithParam<Run> {
 protected:
  void SetUp() override {
    SCGRAFT_NEEDS_SHARED(kCells);
    SCGRAFT_NEEDS_SHARED(cat(kVocabulary, "token_dictionary.json"));
  }
};

class LearnsRealCells : public CellModelsRealDataTest {};
INSTANTIATE_TEST_SUITE_P(What, LearnsRealCells,
                         ::testing::Combine(::testing::Values("scgpt", "geneformer", "scbert",
                                                              "scfoundation"),
                                            ::testing::Values("lora", "encoder", "prefix", "token",
                                                              "hra", "token+encoder+lora")),
                         name_of_run);

// The loss is that of all cells before and after: no step shows what others have forgotten.
TEST_P(LearnsRealCells, ThirtyStepsLowerTheLossAndEveryFrozenTensorKeepsItsHash) {
  const auto [kind, adapter_kind] = GetParam();
  RealCells& cells = RealCells::get();
  const TokenStore& tokens = cells.tokens(kind);
  const std::vector<int32_t>& labels = cells.selection().label;
  ASSERT_EQ(labels.size(), 60U);
  const auto model = open_cell_model(cells.model(kind), {.classes = 4, .seed = kSeed});
  AdapterOptions options;
  options.type = adapter_kind;
  options.rank = kRank;
  options.alpha = kRank;
  options.tokens = 4;
  const auto adapter = make_adapter(options, model->backbone(), kSeed);
  adapter->attach(model->backbone());
  std::vector<Parameter*> trained = model->network().head_parameters();
  std::vector<Parameter*> frozen = model->backbone().parameters().all();
  std::erase_if(frozen, [&](Parameter* p) {
    return std::find(trained.begin(), trained.end(), p) != trained.end();
  });
  for (Parameter* p : adapter->parameters()) trained.push_back(p);
  const auto frozen_before = hashes_of(frozen), trained_before = hashes_of(trained);

  Context ctx(Device::cpu(), {.threads = 1});
  ParameterBlock block(trained, 0.01);
  model->backbone().parameters_updated();
  CellClassification objective(model->network(), {});
  std::vector<int64_t> numbers(labels.size());
  std::iota(numbers.begin(), numbers.end(), 0);
  LabelledCells source(tokens, numbers, labels);
  MicroBatch micro_batch = training_micro_batch(ctx, 0);
  const double before = evaluate(ctx, objective, source, 0, micro_batch).mean();
  const TrainerResult result = train(ctx, objective, source, block,
                                     {.epochs = 100,
                                      .max_steps = 30,
                                      .batch_size = kBatch,
                                      .learning_rate = kRate,
                                      .warmup_ratio = 0},
                                     [&] { model->backbone().parameters_updated(); }, {});
  ASSERT_EQ(result.steps, 30);
  const double after = evaluate(ctx, objective, source, 0, micro_batch).mean();
  EXPECT_LT(after, 0.9 * before) << before << " -> " << after;
  ASSERT_GT(frozen.size(), 10U);
  for (const auto& [p, hash] : frozen_before) EXPECT_EQ(hash_of(*p), hash) << p->name;
  for (const auto& [p, hash] : trained_before) EXPECT_NE(hash_of(*p), hash) << p->name;
}

class AnnotatesRealCells : public CellModelsRealDataTest {};
INSTANTIATE_TEST_SUITE_P(What, AnnotatesRealCells,
                         ::testing::Combine(::testing::Values("scgpt", "geneformer", "scbert",
                                                              "scfoundation"),
                                            ::testing::Values("lora")),
                         name_of_run);

TEST_P(AnnotatesRealCells, AnAdapterOfThirtyStepsIsRightAboutMoreThanHalf) {
  const auto [kind, adapter_kind] = GetParam();
  RealCells& cells = RealCells::get();
  RunConfig config;
  config.base_model = cells.model(kind);
  config.output_dir = cells.fresh("run");
  make_directory(config.output_dir);
  config.data = cells.data();
  config.data.val_fraction = 0;
  config.data.test_fraction = 0.2;
  config.adapter.type = adapter_kind;
  config.adapter.r = kRank;
  config.adapter.lora_alpha = kRank;
  config.train.epochs = config.train.max_steps = 30;
  config.train.seed = kSeed;
  config.train.micro_batch_size = kBatch;
  config.train.learning_rate = kRate;
  config.train.warmup_ratio = 0;
  Context ctx(Device::cpu(), {.threads = 1});
  const FineTuneResult result = fine_tune(ctx, config, "", false, {});
  Annotator annotator(result.adapter, {});
  const Annotation now = annotator.annotate(ctx, cells.file(), "", "", {});
  EXPECT_EQ(now.without_genes, 0);
  int64_t right = 0;
  const CellSelection& truth = cells.selection();
  for (size_t i = 0; i < truth.rows.size(); ++i)
    right +=
        annotator.labels()[static_cast<size_t>(now.label[static_cast<size_t>(truth.rows[i])])] ==
        truth.labels[static_cast<size_t>(truth.label[i])];
  EXPECT_GT(right, 30) << "chance is 15";
  EXPECT_EQ(now.genes.columns(), 9621);
}

}  // namespace
}  // namespace scgraft
