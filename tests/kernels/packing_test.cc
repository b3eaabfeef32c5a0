// SPDX-License-Identifier: Apache-2.0
#include "kernels/packing.h"

#include "runtime/context.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

const std::vector<int32_t> kOffsets = {0, 0, 2, 3, 3, 6};
const std::vector<int64_t> kIds = {9, 8, 7, 6, int64_t{1} << 40};

TEST(DevicePacking, OnTheCpuIsThePackingThatCameIn) {
  Context ctx;
  const DevicePacking owner(ctx, Packing::over(kOffsets, kIds));
  EXPECT_EQ(owner.packing().cu_seqlens.data(), kOffsets.data());
  EXPECT_EQ(owner.packing().cell_ids.data(), kIds.data());
  EXPECT_TRUE(owner.packing().row_cells.empty());
}

class DevicePackingOnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device in this build or machine";
  }
};

TEST_F(DevicePackingOnCuda, UploadsOffsetsIdsAndTheCellOfEachRow) {
  Context ctx(Device::cuda());
  DevicePacking owner(ctx, Packing::over(kOffsets, kIds));
  const Packing& there = owner.packing();
  ctx.require_here("test", there.cu_seqlens, there.cell_ids, there.row_cells);
  EXPECT_EQ(values_of(there.cu_seqlens), (std::vector<double>{0, 0, 2, 3, 3, 6}));
  EXPECT_EQ(values_of(there.cell_ids), (std::vector<double>{9, 8, 7, 6, 0x1p40}));
  EXPECT_EQ(values_of(there.row_cells), (std::vector<double>{1, 1, 2, 4, 4, 4}));
  EXPECT_EQ(there.cells(), 5);
  EXPECT_EQ(there.tokens(), 6);

  // Fewer cells use the memory that is there.
  const void* memory = there.cu_seqlens.data();
  const std::vector<int32_t> fewer = {0, 1, 4};
  owner.assign(ctx, Packing::over(fewer));
  EXPECT_EQ(owner.packing().cu_seqlens.data(), memory);
  EXPECT_EQ(values_of(owner.packing().cu_seqlens), (std::vector<double>{0, 1, 4}));
  EXPECT_TRUE(owner.packing().cell_ids.empty());
  EXPECT_EQ(values_of(owner.packing().row_cells), (std::vector<double>{0, 1, 1, 1}));
  const PackedRows rows = packed_rows("test", ctx, owner.packing());
  EXPECT_EQ(rows.offsets, memory);
  EXPECT_EQ(rows.ids, nullptr);
  EXPECT_EQ(rows.cells, 2);
  EXPECT_EQ(rows.tokens, 4);

  const std::vector<int32_t> none = {0, 0};
  owner.assign(ctx, Packing::over(none));
  EXPECT_EQ(packed_rows("test", ctx, owner.packing()).row_cells, nullptr);
}

TEST_F(DevicePackingOnCuda, KernelsAreNotGivenAPackingOfTheHost) {
  Context ctx(Device::cuda());
  const Packing host = Packing::over(kOffsets, kIds);
  expect_error("test: a tensor is on cpu, the context runs on cuda:0",
               [&] { packed_rows("test", ctx, host); });
  DevicePacking owner(ctx, host);
  Packing without = owner.packing();
  without.row_cells = {};
  expect_error("no index of the cell of each row", [&] { packed_rows("test", ctx, without); });
  expect_error("the packing has no offsets", [&] { packed_rows("test", ctx, Packing()); });
}

}  // namespace
}  // namespace scgraft
