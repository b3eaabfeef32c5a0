// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace scgraft {

struct RunConfig {
  std::string base_model, output_dir, task = "annotate";
  struct Adapter {
    std::string type = "lora";
    int64_t r = 8;
    double lora_alpha = 16, lora_dropout = 0;
    std::vector<std::string> target_modules = {"q", "v"};
    int64_t first_layer = 0, last_layer = -1;
  } adapter;
  struct Data {
    std::string train;
    double val_fraction = 0.1, test_fraction = 0;
    std::string split_by, label_key, gene_key, layer = "auto", hvg = "none", subset;
    std::vector<std::string> exclude_labels;
    int64_t hvg_count = 0, max_genes = 1200;
  } data;
  struct Train {
    std::string trainable = "adapter";
    int64_t epochs = 10, max_steps = 0, micro_batch_size = 32, gradient_accumulation_steps = 1;
    double learning_rate = 1e-3;
    std::string lr_scheduler = "cosine";
    double warmup_ratio = 0.05, weight_decay = 0.01, max_grad_norm = 1.0;
    std::string precision = "auto", class_weights = "none";
    int64_t early_stopping_patience = 3;
    double mask_ratio = 0.4;
    int64_t seed = 0;
    double max_seconds = 0;
  } train;
};

}  // namespace scgraft
