// SPDX-License-Identifier: Apache-2.0
#include "training/batch_loader.h"

#include "runtime/gpu/memory.h"
#include "runtime/gpu/streams_emulated.h"
#include "tests/training/tiny_cells.h"
#include "training/cell_sources.h"
#include "training/masked_expression.h"

namespace scgraft {
namespace {

constexpr int64_t kCells = 23;
constexpr int64_t kPerStep = 5;
constexpr int64_t kStepsPerEpoch = 5;
constexpr int64_t kSteps = 2 * kStepsPerEpoch;

// What is in a chunk.
struct Seen {
  std::vector<int32_t> genes, labels;
  std::vector<float> values;
  std::vector<uint8_t> masked;
  double weight;
  int64_t tokens_of_step;
  bool last;
  friend bool operator==(const Seen&, const Seen&) = default;
};

template <class T>
std::vector<T> host_values(ConstTensorView view) {
  std::vector<T> out(static_cast<size_t>(view.numel()));
  copy(view, view_of(out.data(), view.shape()));
  return out;
}

// Cells that cannot be had from some step on.
class FailingCells : public MaskedCells {
 public:
  using MaskedCells::MaskedCells;
  void view(std::span<const int64_t> cells, int64_t epoch, std::vector<CellView>& views) override {
    if (views_until_error-- == 0) throw DataError("cell 7 is damaged");
    MaskedCells::view(cells, epoch, views);
  }
  int64_t views_until_error = -1;  // never
};

struct Loading {
  explicit Loading(Device device = Device::cpu()) : ctx(device, {.threads = 1}) {
    net.move_to(device);
  }
  std::unique_ptr<BatchLoader> loader(BatchLoader::Mode mode) {
    return std::make_unique<BatchLoader>(
        ctx, cells, objective, StepPlan{.seed = 4, .cells_per_step = kPerStep, .steps = kSteps},
        mode);
  }
  // The chunks of some steps.
  std::vector<Seen> read(BatchLoader& from, int64_t steps) {
    std::vector<Seen> seen;
    while (steps > 0) {
      const BatchLoader::Chunk chunk = from.next();
      const TokenBatch& batch = *chunk.batch;
      const std::vector<int32_t> unique = host_values<int32_t>(batch.unique_genes());
      Seen one{.genes = {},
               .labels = host_values<int32_t>(batch.labels()),
               .values = host_values<float>(batch.values()),
               .masked = host_values<uint8_t>(batch.masked()),
               .weight = chunk.weight,
               .tokens_of_step = chunk.lengths.all,
               .last = chunk.last};
      for (const int32_t i : host_values<int32_t>(batch.gene_index()))
        one.genes.push_back(unique[static_cast<size_t>(i)]);
      seen.push_back(std::move(one));
      steps -= chunk.last;
      from.release();
    }
    return seen;
  }
  std::vector<Seen> read_all(BatchLoader::Mode mode, int64_t chunk_tokens) {
    const auto all = loader(mode);
    all->seek(0, chunk_tokens);
    return read(*all, kSteps);
  }

  Context ctx;
  TokenStore store = tiny_store(kCells);
  std::vector<int64_t> numbers_of_cells = numbers(kCells);
  ScgptNetwork net = tiny_net();
  MaskedExpression objective{net};
  FailingCells cells{store, numbers_of_cells, {.ratio = 0.4, .mask_value = -1, .seed = 2}};
};

constexpr auto kAhead = BatchLoader::Mode::ahead;
constexpr auto kOnDemand = BatchLoader::Mode::on_demand;

TEST(BatchLoader, PacksTheSameChunksAheadAndOnDemand) {
  Loading loading;
  for (const int64_t chunk_tokens : {1, 30, 1000}) {
    const std::vector<Seen> want = loading.read_all(kOnDemand, chunk_tokens);
    EXPECT_TRUE(loading.read_all(kAhead, chunk_tokens) == want) << chunk_tokens;
    EXPECT_GE(want.size(), static_cast<size_t>(chunk_tokens == 1000 ? kSteps : 2 * kSteps));
    EXPECT_NE(want.front().genes, want[want.size() / 2].genes) << "epochs have orders of their own";
  }
}

TEST(BatchLoader, GoesBackToAnyStepWithOtherChunks) {
  for (const auto mode : {kAhead, kOnDemand}) {
    Loading loading, other;
    const auto loader = loading.loader(mode);
    loader->seek(0, 1000);
    loading.read(*loader, 7);
    for (const int64_t step : {6, 2, 9}) {
      loader->seek(step, 30);
      const auto fresh = other.loader(kOnDemand);
      fresh->seek(step, 30);
      EXPECT_TRUE(loading.read(*loader, 1) == other.read(*fresh, 1)) << step;
      loader->seek(step + 1, 30);  // where it is
    }
    // In the middle of a step, and with a chunk that was not given back.
    loader->seek(3, 10);
    loader->next();
    loader->seek(3, 10);
    const auto fresh = other.loader(kOnDemand);
    fresh->seek(3, 10);
    EXPECT_TRUE(loading.read(*loader, 2) == other.read(*fresh, 2));
  }
}

TEST(BatchLoader, AnErrorComesInItsPlaceAndCanBeOvercome) {
  for (const auto mode : {kAhead, kOnDemand}) {
    Loading loading;
    loading.cells.views_until_error = 3;
    const auto loader = loading.loader(mode);
    loader->seek(0, 1000);
    EXPECT_EQ(loading.read(*loader, 3).size(), 3U);
    EXPECT_THROW(loader->next(), DataError);
    loader->seek(3, 1000);
    EXPECT_EQ(loading.read(*loader, kSteps - 3).size(), static_cast<size_t>(kSteps - 3));
  }
}

TEST(BatchLoader, CanBeGivenUpAtAnyTime) {
  for (int64_t steps = -1; steps < 4; ++steps) {
    Loading loading;
    const auto loader = loading.loader(kAhead);
    if (steps >= 0) loader->seek(0, 30);
    if (steps > 0) loading.read(*loader, steps);
  }
}

TEST(BatchLoader, BatchesArriveOnTheDevice) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  Loading host, device(Device::cuda());
  const std::vector<Seen> want = host.read_all(kOnDemand, 30);
  EXPECT_TRUE(device.read_all(kAhead, 30) == want);
  if constexpr (kCudaEmulated) {
    gpu::emulated_copy_time() = gpu::CopyTime::early;
    EXPECT_TRUE(device.read_all(kAhead, 30) == want);
    gpu::emulated_copy_time() = gpu::CopyTime::late;
  }
}

// Reads on the context's stream alone see them too: it waits for the copies.
TEST(BatchLoader, TheStreamOfTheContextWaitsForTheCopies) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  Loading loading(Device::cuda());
  const auto loader = loading.loader(kAhead);
  loader->seek(0, 1000);
  for (int64_t step = 0; step < kSteps; ++step) {
    const BatchLoader::Chunk chunk = loader->next();
    const ConstTensorView values = chunk.batch->unique_values();
    std::vector<float> seen(static_cast<size_t>(values.numel()));
    copy(loading.ctx, values, view_of(seen.data(), values.shape()));
    loading.ctx.synchronize();
    const std::span<const float> want = chunk.batch->host_unique_values();
    EXPECT_TRUE(std::equal(seen.begin(), seen.end(), want.begin(), want.end()));
    loader->release();
  }
}

// Copies are late: the first one would take what was packed for the third.
TEST(BatchLoader, PinnedMemoryIsNotPackedAnewBeforeItsCopy) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  const Stream stream(Device::cuda());
  DeviceArrays memory;
  PreparedArray<float> numbers;
  std::vector<Tensor> back;
  for (int i = 0; i < 5; ++i) {
    numbers.host.assign(3, static_cast<float>(i));
    memory.stage(Device::cuda(), numbers);
    memory.transfer(stream, numbers);
    back.emplace_back(Buffer::staging(12, Device::cuda()), Shape{3}, DType::f32);
    copy(stream, numbers.view(), back.back().view());
  }
  stream.synchronize();
  for (size_t i = 0; i < back.size(); ++i) EXPECT_EQ(values_of(back[i].view())[2], i);
}

TEST(BatchLoader, ReservedMemoryIsEnough) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  if constexpr (kBuiltWithCuda) {
    Loading loading(Device::cuda());
    const auto loader = loading.loader(kAhead);
    loader->reserve(kPerStep, 5 * kTinyVocab);
    const int64_t before = gpu::allocated(Device::cuda());
    loader->seek(0, 1000);
    loading.read(*loader, kSteps);
    EXPECT_EQ(gpu::allocated(Device::cuda()), before);
  }
}

}  // namespace
}  // namespace scgraft
