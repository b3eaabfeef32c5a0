// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace scgraft {

// Everything a training run can be told, with its defaults. Plain values; which words and ranges
// are accepted is said once, in the table of keys (app/config/schema.h), where the names here are
// the names of the YAML file.
struct RunConfig {
  std::string base_model;         // folder of the frozen model
  std::string output_dir;         // run folder
  std::string task = "annotate";  // annotate | pretrain

  struct Adapter {
    std::string type = "lora";  // as make_adapter() takes it, or none
    int64_t r = 8;
    double lora_alpha = 16;
    double lora_dropout = 0;
    std::vector<std::string> target_modules = {"q", "v"};
    int64_t blocks = 4;
    int64_t block_size = 0;  // 0: by blocks
    double constraint = 0;   // 0: none
    double width = 0.25;
    std::string layout = "norm";     // norm | parallel | branch | normed | residual
    std::string start = "identity";  // identity | uniform
    int64_t tokens = 8;
    std::string sharing = "none";  // none | layers
    int64_t first_layer = 0;
    int64_t last_layer = -1;  // -1: the last layer of the model
  } adapter;

  struct Data {
    std::string train;          // .h5ad
    std::string val;            // .h5ad; empty: val_fraction of the training file
    double val_fraction = 0.1;  // share of the cells that chooses the epoch
    double test_fraction = 0;   // share of the cells that is only measured at the end
    std::string split_by;       // obs column whose groups stay together; empty: by label
    std::string label_key;      // obs column
    std::string subset;         // COLUMN=VALUE of obs; empty: every cell
    std::vector<std::string> exclude_labels;  // classes that are left out
    std::string gene_key;                     // var column; empty: the index
    std::string layer = "auto";               // auto | X | raw | name of a layer
    std::string hvg = "none";                 // none | seurat_v3 | cell_ranger
    int64_t hvg_count = 0;
    int64_t max_genes = 0;     // of a cell; 0: as many as the model takes
    std::string target_depth;  // scFoundation: see TargetDepth; empty: the model's
    std::string dictionaries;  // folder of what names the model's genes; empty: the model's
  } data;

  struct Train {
    std::string trainable = "adapter";  // adapter | head | all
    int64_t epochs = 10;
    int64_t max_steps = 0;          // 0: as many as the epochs have
    int64_t micro_batch_size = 32;  // cells
    int64_t gradient_accumulation_steps = 1;
    double learning_rate = 1e-3;
    std::string lr_scheduler = "cosine";  // constant | linear | cosine | step
    double warmup_ratio = 0.05;
    double weight_decay = 0.01;
    double max_grad_norm = 1.0;           // 0: no clipping
    std::string precision = "auto";       // auto | fp32 | bf16 | fp16
    std::string linear_backend = "own";   // own | cublaslt
    std::string class_weights = "none";   // none | balanced | scpeft
    int64_t early_stopping_patience = 3;  // epochs; 0: never
    double mask_ratio = 0.4;              // pretrain: share of genes that are masked
    std::string activations = "auto";     // keep | recompute for the backward pass, as memory asks
    int64_t redraw_interval = 0;          // steps; 0: random features stay as they are
    int64_t seed = 0;
    double max_seconds = 0;  // 0: no limit
  } train;
};

}  // namespace scgraft
