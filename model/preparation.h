// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace scgraft {

// How expression becomes tokens of a model. Saved beside an adapter as preprocess.json, so that
// prediction prepares cells as training did. A file holds the fields of its model alone.
struct Preparation {
  std::string model = "scgpt";  // whose tokens: Backbone::kind()
  std::string layer = "auto";   // which matrix: auto, X, raw, or a layer
  std::string gene_key = {};    // var column with the genes' names; empty: the model's habit
  double target_sum = 1e4;      // scGPT: total of a cell after normalising
  std::string hvg = "none";     // scGPT: none, seurat_v3, cell_ranger; only when `genes` is empty
  int64_t hvg_count = 0;        // scGPT
  int64_t n_bins = 51;          // scGPT
  int64_t max_length =
      1200;           // scGPT, Geneformer: tokens of a cell at most, special ones among them
  uint64_t seed = 0;  // scGPT: of binning ties and gene sampling
  // scGPT: only these tokens of the vocabulary are used; empty: all that match.
  std::vector<std::string> genes = {};
  // scFoundation: the sequencing depth that cells ask for; see TargetDepth.
  std::string target_depth = "t4";
  // All but scGPT: folder of what names the genes, empty: the model's own, and what identifies
  // the content, empty: not known.
  std::string dictionaries = {};
  std::string dictionary_fingerprint = {};

  // Sets target_depth; empty: it stays. Throws ConfigError (E-PREPARE) for a model whose cells do
  // not ask for one, (E-CONFIG) for a text that is none.
  void ask_for_depth(const std::string& depth);
  // Throws ConfigError (E-PREPARE) naming the first field that makes no sense.
  void validate() const;

  nlohmann::json to_json() const;
  // Every field of the model must be there, of its type, and nothing else. Version 1 of the file
  // knows scGPT only and does not name it. Throws ModelError (E-PREPARE).
  static Preparation from_json(const nlohmann::json& json, const std::string& file);
};

// Throws ModelError (E-PREPARE) unless cells are prepared for the model `kind`.
void require_preparation_of(const Preparation& preparation, const std::string& kind);

}  // namespace scgraft
