// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <vector>

#include "model/batch.h"
#include "model/parameter_source.h"
#include "model/row_index.h"
#include "model/scgpt/config.h"

namespace scgraft {

// Rows of values, once per distinct value of a batch.
class ValueRows {
 public:
  virtual ~ValueRows() = default;
  virtual bool trainable() const = 0;
  virtual std::vector<Linear*> linears() = 0;
  virtual std::vector<LayerNorm*> norms() = 0;
  // -> [unique values, dim], in ctx.activations().
  virtual TensorView forward(Context& ctx, const TokenBatch& batch, bool training, bool save) = 0;
  // dvalue [unique values, dim] is used up.
  virtual void backward(Context& ctx, const TokenBatch& batch, bool training,
                        TensorView dvalue) = 0;
};

// u = LN(W2 relu(W1 min(value, 512) + b1) + b2)
class ContinuousValues : public ValueRows {
 public:
  ContinuousValues(const ParameterMaker& make, int64_t dim);
  bool trainable() const override;
  std::vector<Linear*> linears() override { return {&linear1_, &linear2_}; }
  std::vector<LayerNorm*> norms() override { return {&norm_}; }
  TensorView forward(Context& ctx, const TokenBatch& batch, bool training, bool save) override;
  void backward(Context& ctx, const TokenBatch& batch, bool training, TensorView dvalue) override;

 private:
  // The clamped values [unique values, 1].
  TensorView clamped(Context& ctx, std::span<const float> values, DType type);

  Linear linear1_, linear2_;
  LayerNorm norm_;
  ConstTensorView in_, hidden_;  // after relu
  LayerNorm::Saved saved_;
  PreparedArray<float> values_;  // of the batch on their way to the device
  DeviceArrays memory_;
};

// u = LN(T[int(value)])
class CategoryValues : public ValueRows {
 public:
  // rows: of the table.
  CategoryValues(const ParameterMaker& make, int64_t rows, int64_t dim);
  bool trainable() const override { return table_->trainable() || norm_.trainable(); }
  std::vector<Linear*> linears() override { return {}; }
  std::vector<LayerNorm*> norms() override { return {&norm_}; }
  // Throws DataError (E-VALUE-CATEGORY) for a value outside the table.
  TensorView forward(Context& ctx, const TokenBatch& batch, bool training, bool save) override;
  void backward(Context& ctx, const TokenBatch& batch, bool training, TensorView dvalue) override;

 private:
  Parameter* table_;
  LayerNorm norm_;
  LayerNorm::Saved saved_;
  RowIndex categories_;  // of the distinct values
};

// Null where values have no rows (ValueStyle::scaling).
std::unique_ptr<ValueRows> make_value_rows(const ParameterMaker& make, const ScgptConfig& config);

}  // namespace scgraft
