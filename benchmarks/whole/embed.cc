// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstring>

#include "benchmarks/whole/whole.h"
#include "io/safetensors.h"
#include "model/scgpt/load.h"
#include "runtime/cpu.h"
#include "training/predict.h"

namespace scgraft::whole {
namespace {

std::vector<CellView> views_of(const TokenStore& store) {
  std::vector<CellView> views;
  for (int64_t i = 0; i < store.size(); ++i) views.push_back(store.view(i));
  return views;
}

bool same(const Tensor& a, int64_t row, const Tensor& b, int64_t other) {
  const auto bytes = static_cast<size_t>(a.dim(1)) * sizeof(float);
  return std::memcmp(a.as<float>() + row * a.dim(1), b.as<float>() + other * b.dim(1), bytes) == 0;
}

// One cell at a time on one thread, and all of them backwards: no bit may change.
bool independent_of_batch(CellNetwork& net, const std::vector<CellView>& views,
                          const Tensor& want) {
  Context one(Device::cpu(), {.threads = 1}), all;
  Tensor single({1, net.embedding_dim()}, DType::f32);
  Tensor backwards(want.shape(), DType::f32);
  const std::vector<CellView> turned(views.rbegin(), views.rend());
  MicroBatch micro_batch = inference_micro_batch(all);
  embed_cells(all, net, turned, backwards.view(), micro_batch);
  const auto n = static_cast<int64_t>(views.size());
  for (int64_t i = 0; i < n; ++i) {
    if (!same(want, i, backwards, n - 1 - i)) return false;
    if (i >= 16) continue;  // enough of the slow ones
    embed_cells(one, net, std::span(views).subspan(static_cast<size_t>(i), 1), single.view(),
                micro_batch);
    if (!same(want, i, single, 0)) return false;
  }
  return true;
}

}  // namespace

nlohmann::json time_embedding(const Arguments& arguments) {
  const auto threads = static_cast<int>(arguments.number("threads", 2));
  Context ctx(Device::cpu(), {.threads = threads});
  const Cells cells = read_cells_file(arguments.text("folder") + "/cells.safetensors");
  const Grafted model = load_network(arguments, 0);
  CellNetwork& network = *model.network;
  const std::vector<CellView> views = views_of(cells.store);
  Tensor out({cells.store.size(), network.embedding_dim()}, DType::f32);
  MicroBatch micro_batch = inference_micro_batch(ctx);
  embed_cells(ctx, network, std::span(views).first(std::min<size_t>(8, views.size())), out.view(),
              micro_batch);
  std::vector<double> seconds;
  for (int64_t i = 0; i < arguments.number("repeats", 1); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    embed_cells(ctx, network, views, out.view(), micro_batch);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  const int64_t peak = peak_resident_bytes();
  const Work work = embed_work(model.work, cells.store);
  nlohmann::json result = {{"seconds", seconds},
                           {"cells", cells.store.size()},
                           {"tokens", cells.store.tokens()},
                           {"peak_rss", peak},
                           {"gflop_dense", work.dense},
                           {"gflop_needed", work.needed},
                           {"peak_gflops_f32", peak_gflops(threads, DType::f32)}};
  const std::string file = arguments.text("out", "");
  if (!file.empty()) {
    write_safetensors(file, {{"embedding", std::as_const(out).view()}}, {}, Overwrite::replace);
    result["same_bits"] = independent_of_batch(network, views, out);
  }
  return result;
}

nlohmann::json time_loading(const Arguments& arguments) {
  std::vector<double> seconds;
  for (int64_t i = 0; i < arguments.number("repeats", 5); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const ScgptModel model = load_scgpt(arguments.text("folder"), {.pretraining_heads = true});
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return {{"seconds", seconds}};
}

}  // namespace scgraft::whole
