// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "adapters/adapter.h"
#include "model/scgpt/cells.h"
#include "model/token_store.h"

namespace scgraft::whole {

// "--key value" pairs of a command line.
class Arguments {
 public:
  Arguments(int argc, char** argv);
  // Throws ConfigError naming the key when it was not given.
  const std::string& text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  int64_t number(const std::string& key, int64_t otherwise) const;

 private:
  std::map<std::string, std::string> values_;
};

// Cells of cells.safetensors: genes [tokens] i32, values [tokens] f32, offsets [cells + 1] i64,
// labels [cells] i32.
struct Cells {
  TokenStore store;
  std::vector<int32_t> labels;
  int64_t classes = 0;
};
Cells read_cells_file(const std::string& path);

// A checkpoint with the trained part of start.safetensors in it: rank-8 terms on q and v of all
// layers (alpha 16) and a classification head, by their names.
struct Grafted {
  ScgptModel model;
  std::unique_ptr<Adapter> adapter;
  std::vector<Parameter*> trained;
};
Grafted load_grafted(const Arguments& arguments, int64_t classes);

// Floating point operations of the matrix products of one pass over cells of these lengths, in
// units of 1e9, multiply and add counted separately, LoRA's own left out.
//   dense   every row of every layer, as a network that knows nothing of the loss computes it
//   needed  without what does not reach the loss or a trained parameter: of the last layer only
//           the CLS row, of the first layer's gradient only queries and values
struct Work {
  double dense = 0;
  double needed = 0;
};
Work step_work(const ScgptConfig& config, const TokenStore& cells);
Work embed_work(const ScgptConfig& config, const TokenStore& cells);

// GFLOP/s of this program's own products at a shape without remainders, best of several.
double peak_gflops(int threads, DType product);

// The commands. Each returns what is printed.
nlohmann::json make_inputs(const Arguments& arguments);
nlohmann::json time_steps(const Arguments& arguments);
nlohmann::json write_gradients(const Arguments& arguments);
nlohmann::json time_embedding(const Arguments& arguments);
nlohmann::json time_tokens(const Arguments& arguments);
nlohmann::json time_loading(const Arguments& arguments);

}  // namespace scgraft::whole
