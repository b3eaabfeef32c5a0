// SPDX-License-Identifier: Apache-2.0
// From an .h5ad file to tokens of scGPT: reading, normalising, binning, sampling.
//   SCGRAFT_BENCH_H5AD   a file of counts to use instead of the synthetic one
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5_out.h"
#include "model/scgpt/binning.h"
#include "model/scgpt/token_reader.h"
#include "runtime/cat.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

constexpr int64_t kCells = 2000;
constexpr int64_t kGenes = 20000;
constexpr int64_t kExpressed = 2000;  // of a cell

Strings gene_names(int64_t count) {
  Strings names;
  for (int64_t gene = 0; gene < count; ++gene) names.push_back(cat("gene", gene));
  return names;
}

void add_frame(hdf5::OutNode& root, const char* name, const Strings& index) {
  hdf5::OutNode frame = root.add_group(name, "dataframe", "0.2.0");
  frame.set_text("_index", "_index");
  frame.set_texts("column-order", {});
  frame.add_strings("_index", index);
}

// Counts with a long tail, most of them 1, as droplets give.
void write_synthetic(const std::string& path) {
  std::vector<float> data;
  std::vector<int32_t> indices;
  std::vector<int64_t> indptr{0};
  RandomStream random(1, RandomUse::simulate);
  for (int64_t cell = 0; cell < kCells; ++cell) {
    for (int64_t gene = 0; gene < kGenes; ++gene) {
      if (random.below(kGenes) >= kExpressed) continue;
      const double u = random.uniform();
      data.push_back(static_cast<float>(static_cast<int64_t>(1 / (1 - 0.99 * u))));
      indices.push_back(static_cast<int32_t>(gene));
    }
    indptr.push_back(static_cast<int64_t>(data.size()));
  }
  hdf5::OutFile file(path, path);
  {
    hdf5::OutNode root = hdf5::OutNode::root(file);
    root.set_encoding("anndata", "0.1.0");
    add_frame(root, "obs", Strings(static_cast<size_t>(kCells), "cell"));
    add_frame(root, "var", gene_names(kGenes));
    hdf5::OutNode x = root.add_group("X", "csr_matrix", "0.1.0");
    const int64_t shape[] = {kCells, kGenes};
    x.set_integers("shape", shape);
    x.add_array("data", data);
    x.add_array("indices", indices);
    x.add_array("indptr", indptr);
  }
  file.close();
}

// The benchmark's file, made once and removed at the end.
class BenchFile {
 public:
  BenchFile() {
    if (const char* given = std::getenv("SCGRAFT_BENCH_H5AD")) {
      path_ = given;
      return;
    }
    made_ = (std::filesystem::temp_directory_path() / cat("scgraft-bench-", ::getpid(), ".h5ad"))
                .string();
    write_synthetic(path_ = made_);
  }
  ~BenchFile() {
    if (!made_.empty()) std::filesystem::remove(made_);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::string made_;
};

const std::string& bench_path() {
  static const BenchFile file;
  return file.path();
}

Vocabulary vocabulary_of(const H5ad& file) {
  Vocabulary vocabulary;
  for (const std::string& name : file.var().index()) vocabulary.append(name);
  vocabulary.append_specials();
  return vocabulary;
}

// The whole way; threads = argument.
void tokenise_file(benchmark::State& state) {
  const H5ad file = H5ad::open(bench_path());
  const Vocabulary vocabulary = vocabulary_of(file);
  Context ctx(Device::cpu(), {.threads = static_cast<int>(state.range(0))});
  TokenReader reader(ctx, file, vocabulary, vocabulary.id("<cls>"), {});
  int64_t tokens = 0;
  for (auto _ : state) {
    reader.rewind();
    for (TokenisedCells cells; reader.next(cells);) tokens += cells.offsets.back();
  }
  state.counters["cells/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * reader.cells()), benchmark::Counter::kIsRate);
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
}
BENCHMARK(tokenise_file)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

// Reading alone: what no tokeniser can be faster than.
void read_file(benchmark::State& state) {
  const H5ad file = H5ad::open(bench_path());
  RowReader reader(file, choose_slot(file, "auto").slot);
  int64_t values = 0;
  for (auto _ : state) {
    reader.rewind();
    for (SparseRows rows; reader.next(rows);) values += rows.offsets.back();
  }
  state.counters["cells/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * reader.rows()), benchmark::Counter::kIsRate);
  benchmark::DoNotOptimize(values);
}
BENCHMARK(read_file)->Unit(benchmark::kMillisecond)->UseRealTime();

// One cell's values; argument 1: few distinct ones as of counts, 0: all different.
void bin_cell(benchmark::State& state) {
  std::vector<float> values;
  RandomStream random(2, RandomUse::simulate);
  for (int64_t i = 0; i < kExpressed; ++i) {
    const double u = random.uniform();
    values.push_back(state.range(0) == 1
                         ? static_cast<float>(static_cast<int64_t>(1 / (1 - 0.99 * u)))
                         : static_cast<float>(u + 0.1));
  }
  const std::vector<double> uniforms(values.size(), 0.5);
  std::vector<float> bins(values.size());
  BinningScratch scratch;
  for (auto _ : state) {
    bin_values(values, 51, uniforms, bins, scratch);
    benchmark::DoNotOptimize(bins.data());
  }
  state.counters["values/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * kExpressed), benchmark::Counter::kIsRate);
}
BENCHMARK(bin_cell)->Arg(0)->Arg(1);

}  // namespace
}  // namespace scgraft
