// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "io/h5ad_creator.h"
#include "io/h5ad_rows.h"
#include "io/simulate.h"
#include "model/scgpt/load.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"
#include "training/run_config.h"

namespace scgraft {

// A simulated study of 120 + 40 cells and a model of width 16 that knows its genes, made once per
// test program.
class TinyStudy {
 public:
  static TinyStudy& get() {
    static TinyStudy study;
    return study;
  }

  Context& ctx() { return ctx_; }
  std::string atlas() const { return folder_ / "study/atlas.h5ad"; }
  std::string shifted() const { return folder_ / "study/shifted.h5ad"; }
  std::string model() const { return folder_ / "model"; }
  // A new name below the folder that goes away with the program.
  std::string fresh(const std::string& name) { return folder_ / cat(++names_, "-", name); }

  // 20 steps of the adapter on 120 cells.
  RunConfig config() {
    RunConfig c;
    c.base_model = model();
    c.output_dir = fresh("run");
    make_directory(c.output_dir);
    c.data.train = atlas();
    c.data.label_key = "cell_type";
    c.data.val_fraction = 0.25;
    c.adapter.r = 2;
    c.train.micro_batch_size = 16;
    c.train.max_steps = 20;
    c.train.learning_rate = 1e-2;
    c.train.warmup_ratio = 0;
    c.train.early_stopping_patience = 0;
    return c;
  }

 private:
  TinyStudy() {
    simulate_files(ctx_, folder_ / "study",
                   {.cells = 120,
                    .shifted_cells = 40,
                    .types = 4,
                    .genes = 300,
                    .donors = 3,
                    .signal = 2,
                    .depth = 400},
                   Overwrite::refuse);
    ScgptModel model;
    model.vocabulary.append_specials();
    for (const std::string& gene : H5ad::open(atlas()).var().index()) model.vocabulary.append(gene);
    model.config.vocab = model.vocabulary.size();
    model.config.dim = 16;
    model.config.heads = 2;
    model.config.layers = 2;
    model.config.ffn = 16;
    model.config.dropout = 0;
    model.config.max_seq_len = 301;
    model.network = std::make_unique<ScgptNetwork>(
        model.config, ScgptNetwork::Heads{.decoder = true, .mvc = true, .classes = 0},
        scgpt_initialiser(1));
    make_directory(this->model());
    save_scgpt(this->model(), model);
  }

  TemporaryFolder folder_;
  Context ctx_{Device::cpu(), {.threads = 1}};
  int names_ = 0;
};

// The X of a file as a dense matrix [cells, genes], its tables beside it.
struct Cells {
  std::vector<std::string> cells, genes;
  std::vector<float> x;  // [cells, genes]

  explicit Cells(const std::string& path) {
    const H5ad file = H5ad::open(path);
    cells = file.obs().index();
    genes = file.var().index();
    RowReader reader(file, "X");
    for (SparseRows rows; reader.next(rows);)
      for (int64_t r = 0; r < rows.rows(); ++r) {
        const size_t begin = x.size();
        x.resize(begin + genes.size(), 0.0f);
        for (size_t k = 0; k < rows.columns_of(r).size(); ++k)
          x[begin + static_cast<size_t>(rows.columns_of(r)[k])] = rows.values_of(r)[k];
      }
  }

  // Counts become log1p values of a total of 10,000 that differ from gene to gene: no two of a cell
  // are equal, so that its bins need no coin flip (model/scgpt/binning.h).
  void make_distinct_log1p() {
    for (size_t c = 0; c < cells.size(); ++c) {
      double total = 0;
      for (size_t g = 0; g < genes.size(); ++g) {
        float& v = at(c, g);
        v *= 1 + 0.3f * std::sin(static_cast<float>(1 + 13 * g + 7 * c));
        total += static_cast<double>(v);
      }
      for (size_t g = 0; g < genes.size(); ++g)
        at(c, g) = static_cast<float>(std::log1p(1e4 * static_cast<double>(at(c, g)) / total));
    }
  }
  void reorder_cells(const std::vector<size_t>& order) {
    const Cells old = *this;
    for (size_t i = 0; i < order.size(); ++i) {
      cells[i] = old.cells[order[i]];
      for (size_t g = 0; g < genes.size(); ++g) at(i, g) = old.x[order[i] * genes.size() + g];
    }
  }
  // Keeps these genes, in this order.
  void choose_genes(const std::vector<size_t>& chosen) {
    const Cells old = *this;
    genes.clear();
    for (const size_t g : chosen) genes.push_back(old.genes[g]);
    x.resize(cells.size() * genes.size());
    for (size_t c = 0; c < cells.size(); ++c)
      for (size_t k = 0; k < chosen.size(); ++k) at(c, k) = old.x[c * old.genes.size() + chosen[k]];
  }
  float& at(size_t cell, size_t gene) { return x[cell * genes.size() + gene]; }

  std::string write(const std::string& path) const {
    H5adCreator file(path, Overwrite::refuse);
    file.append_var({.index = genes, .columns = {}});
    file.append_obs({.index = cells, .columns = {}});
    SparseRows rows{.first_row = 0,
                    .columns = static_cast<int64_t>(genes.size()),
                    .offsets = {0},
                    .column = {},
                    .value = {}};
    for (size_t c = 0; c < cells.size(); ++c) {
      for (size_t g = 0; g < genes.size(); ++g)
        if (const float v = x[c * genes.size() + g]; v != 0) {
          rows.column.push_back(static_cast<int32_t>(g));
          rows.value.push_back(v);
        }
      rows.offsets.push_back(static_cast<int64_t>(rows.column.size()));
    }
    file.append_rows(rows);
    file.commit();
    return path;
  }
};

}  // namespace scgraft
