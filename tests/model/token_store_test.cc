// SPDX-License-Identifier: Apache-2.0
#include "model/token_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace scgraft {
namespace {

using ::testing::ElementsAreArray;

// Values that are places, that begin like places, that are none, and a cell without tokens.
const std::vector<std::vector<float>> kValues = {{0, 1, 2}, {0, 1, 5},       {},
                                                 {7},       {0, 1, 2, 3, 4}, {0}};

TokenisedCells chunk_of(size_t begin, size_t end) {
  TokenisedCells chunk;
  chunk.first_cell = static_cast<int64_t>(begin);
  for (size_t c = begin; c < end; ++c) {
    for (const float value : kValues[c]) {
      chunk.genes.push_back(static_cast<int32_t>(10 * c) + static_cast<int32_t>(value));
      chunk.values.push_back(value);
    }
    chunk.offsets.push_back(static_cast<int64_t>(chunk.genes.size()));
  }
  return chunk;
}

TEST(TokenStore, GivesBackWhatWasAddedWhateverTheChunks) {
  for (const size_t cut : {size_t{0}, size_t{2}, size_t{5}}) {
    TokenStore store;
    store.append(chunk_of(0, cut));
    store.append(chunk_of(cut, kValues.size()));
    ASSERT_EQ(store.size(), std::ssize(kValues));
    EXPECT_EQ(store.longest(), 5);
    EXPECT_EQ(store.tokens(), 13);
    for (size_t c = 0; c < kValues.size(); ++c) {
      const CellView cell = store.view(static_cast<int64_t>(c));
      EXPECT_EQ(cell.cell, static_cast<int64_t>(c));
      EXPECT_THAT(std::vector<float>(cell.values.begin(), cell.values.end()),
                  ElementsAreArray(kValues[c]));
      ASSERT_EQ(cell.genes.size(), kValues[c].size());
      for (size_t i = 0; i < cell.genes.size(); ++i)
        EXPECT_EQ(cell.genes[i],
                  static_cast<int32_t>(10 * c) + static_cast<int32_t>(kValues[c][i]));
    }
  }
}

TEST(TokenStore, TakesTheCellsOfASelection) {
  TokenStore store;
  const std::vector<int64_t> some = {1, 4};
  store.append(chunk_of(0, 3), some);
  store.append(chunk_of(3, kValues.size()), some);
  ASSERT_EQ(store.size(), 2);
  EXPECT_EQ(store.view(0).cell, 1);
  EXPECT_EQ(store.view(0).values[2], 5);
  EXPECT_EQ(store.view(1).cell, 4);
  EXPECT_EQ(store.view(1).values[4], 4);
}

}  // namespace
}  // namespace scgraft
