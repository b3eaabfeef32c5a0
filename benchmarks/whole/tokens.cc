// SPDX-License-Identifier: Apache-2.0
#include <chrono>

#include "benchmarks/whole/whole.h"
#include "io/h5ad.h"
#include "io/safetensors.h"
#include "model/scgpt/token_reader.h"
#include "runtime/cpu.h"

namespace scgraft::whole {

// From the file to packed batches of 32 cells, opening included.
nlohmann::json time_tokens(const Arguments& arguments) {
  Context ctx(Device::cpu(), {.threads = static_cast<int>(arguments.number("threads", 2))});
  Preparation preparation;
  preparation.max_length = arguments.number("max-length", preparation.max_length);
  std::vector<double> seconds;
  TokenisedCells all;
  int64_t cells = 0, tokens = 0;
  const std::string out = arguments.text("out", "");
  for (int64_t i = 0; i < arguments.number("repeats", 1); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const H5ad file = H5ad::open(arguments.text("file"));
    Vocabulary vocabulary = Vocabulary::open(arguments.text("vocab"));
    vocabulary.append_specials();
    TokenReader reader(ctx, file, vocabulary, vocabulary.id("<cls>"), preparation);
    TokenBatch batch;
    std::vector<CellView> views;
    cells = tokens = 0;
    for (TokenisedCells chunk; reader.next(chunk);) {
      for (int64_t first = 0; first < chunk.cells(); first += 32) {
        views.clear();
        for (int64_t c = first; c < std::min(first + 32, chunk.cells()); ++c)
          views.push_back(chunk.view(c));
        batch.assign(views);
        cells += batch.cells();
        tokens += batch.tokens();
      }
      if (out.empty()) continue;
      for (int64_t c = 0; c < chunk.cells(); ++c) {
        const CellView view = chunk.view(c);
        all.genes.insert(all.genes.end(), view.genes.begin(), view.genes.end());
        all.values.insert(all.values.end(), view.values.begin(), view.values.end());
        all.offsets.push_back(static_cast<int64_t>(all.genes.size()));
      }
    }
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  if (!out.empty()) {
    const auto n = static_cast<int64_t>(all.genes.size());
    write_safetensors(
        out,
        {{"genes", view_of(all.genes.data(), Shape{n})},
         {"values", view_of(all.values.data(), Shape{n})},
         {"offsets", view_of(all.offsets.data(), Shape{static_cast<int64_t>(all.offsets.size())})}},
        {}, Overwrite::replace);
  }
  return {{"seconds", seconds}, {"cells", cells}, {"tokens", tokens}};
}

}  // namespace scgraft::whole
