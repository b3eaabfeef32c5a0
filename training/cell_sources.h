// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "model/scgpt/tokenizer.h"
#include "model/token_store.h"
#include "training/trainer.h"

namespace scgraft {

// Some cells of a store, each with a class.
class LabelledCells : public CellSource {
 public:
  //   cells   numbers in the store
  //   labels  [store.size()]  class of each cell of the store, -1: none
  // Both must outlive this.
  LabelledCells(const TokenStore& store, std::span<const int64_t> cells,
                std::span<const int32_t> labels)
      : store_(store), cells_(cells), labels_(labels) {}

  int64_t size() const override { return static_cast<int64_t>(cells_.size()); }
  void view(std::span<const int64_t> cells, int64_t epoch, std::vector<CellView>& views) override;

 private:
  const TokenStore& store_;
  std::span<const int64_t> cells_;
  std::span<const int32_t> labels_;
};

// Some cells of a store with values hidden for masked-value modelling; which ones is a function of
// (seed, epoch, cell).
class MaskedCells : public CellSource {
 public:
  MaskedCells(const TokenStore& store, std::span<const int64_t> cells, MaskOptions options)
      : store_(store), cells_(cells), options_(options) {}

  int64_t size() const override { return static_cast<int64_t>(cells_.size()); }
  void view(std::span<const int64_t> cells, int64_t epoch, std::vector<CellView>& views) override;

 private:
  const TokenStore& store_;
  std::span<const int64_t> cells_;
  MaskOptions options_;
  std::vector<std::vector<float>> values_;  // of the cells of one view
  std::vector<std::vector<uint8_t>> masked_;
};

}  // namespace scgraft
