// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "adapters/adapter.h"
#include "model/cell_network.h"
#include "model/token_store.h"
#include "runtime/random.h"

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

inline constexpr int64_t kClasses = 12;

// What the work of a network follows from.
struct LayerSizes {
  int64_t layers = 0, dim = 0;
  int64_t inner = 0;  // width of queries, keys and values
  int64_t ffn = 0;
  int64_t features = 0;   // of FAVOR+; 0: softmax attention
  bool first_row = true;  // whether the head reads one row of a cell, not all
};

// A network with an adapter on all of its layers and a classification head.
struct Grafted {
  std::unique_ptr<Backbone> backbone;
  std::unique_ptr<CellNetwork> network;
  std::unique_ptr<Adapter> adapter;  // null: the head alone is trained, or everything
  std::vector<Parameter*> trained;
  LayerSizes work;
};
// The network of a folder that make_inputs() wrote.
//   --product  f32 or bf16
//   classes    of a fresh head of scGPT; 0: none. The others have one of kClasses.
Grafted load_network(const Arguments& arguments, int64_t classes);
// The same with an adapter and what is trained, with the values of start.safetensors where it
// names what is trained: LoRA of rank 8 on q and v (alpha 16) and the head.
//   --adapter  a type of adapters/adapter.h, "none" for the head alone, "all" for full fine-tuning;
//              default: lora
//   --activations  keep (default) or recompute, as train.activations
Grafted load_grafted(const Arguments& arguments, int64_t classes);

// Networks other than scGPT: published sizes ("tiny": small ones), random weights. sizes has
// "model" and, of cells that all have the same, "length".
void make_network(Grafted& out, const nlohmann::json& sizes);
// A random cell of such a network.
void fill_cell(const nlohmann::json& sizes, RandomStream& random, std::span<int32_t> genes,
               std::span<float> values);

// Floating point operations of the matrix products of one pass over cells of these lengths, in
// units of 1e9, multiply and add counted separately, LoRA's own left out.
//   dense   every row of every layer, as a network that knows nothing of the loss computes it
//   needed  without what does not reach the loss or a trained parameter (LoRA on q and v of all
//           layers): where the head reads one row, that of the last layer alone; of the first
//           layer's gradient only queries and values
struct Work {
  double dense = 0;
  double needed = 0;
};
Work step_work(const LayerSizes& sizes, const TokenStore& cells);
Work embed_work(const LayerSizes& sizes, const TokenStore& cells);

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
