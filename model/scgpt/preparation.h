// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace scgraft {

// How expression becomes tokens of scGPT. Saved beside an adapter as preprocess.json, so that
// prediction prepares cells as training did.
struct Preparation {
  std::string layer = "auto";  // which matrix: auto, X, raw, or a layer
  std::string gene_key = {};   // var column with the genes' names; empty: the index
  double target_sum = 1e4;     // total of a cell after normalising
  std::string hvg = "none";    // none, seurat_v3, cell_ranger; only when `genes` is empty
  int64_t hvg_count = 0;
  int64_t n_bins = 51;
  int64_t max_length = 1200;  // tokens of a cell at most, with <cls>
  uint64_t seed = 0;          // of binning ties and gene sampling
  // Only these tokens of the vocabulary are used; empty: all that match.
  std::vector<std::string> genes = {};

  // Throws ConfigError (E-PREPARE) naming the first field that makes no sense.
  void validate() const;

  nlohmann::json to_json() const;
  // Every field must be there, of its type, and nothing else. Throws ModelError (E-PREPARE).
  static Preparation from_json(const nlohmann::json& json, const std::string& file);
};

}  // namespace scgraft
