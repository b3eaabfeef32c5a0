// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/value_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/activation.h"
#include "kernels/add.h"

namespace scgraft {
namespace {

constexpr double kLargestValue = 512;  // the value encoder clamps above, not below

}  // namespace

ContinuousValues::ContinuousValues(const ParameterMaker& make, int64_t dim)
    : linear1_(make.linear("value_encoder.linear1", 1, dim)),
      linear2_(make.linear("value_encoder.linear2", dim, dim)),
      norm_(make.norm("value_encoder.norm", dim)) {}

bool ContinuousValues::trainable() const {
  return linear1_.trainable() || linear2_.trainable() || norm_.trainable();
}

TensorView ContinuousValues::clamped(Context& ctx, std::span<const float> values, DType type) {
  const auto n = static_cast<int64_t>(values.size());
  // A few dozen numbers, clamped where the batch was made.
  const TensorView v = ctx.activations().take({n, 1}, type);
  const auto clamp = [&]<class T>(T* to) {
    std::transform(values.begin(), values.end(), to, [](float value) {
      return static_cast<T>(std::min(static_cast<double>(value), kLargestValue));
    });
  };
  if (ctx.device().is_cpu()) {
    visit_real(type, [&]<class T>(Type<T>) { clamp(v.as<T>()); });
    return v;
  }
  require<TypeError>(type == DType::f32, "scgpt: on a GPU the value encoder is f32, got ", type);
  values_.host.resize(values.size());
  clamp(values_.host.data());
  memory_.send(ctx, values_);
  copy(ctx, values_.view().reshape({n, 1}), v);
  return v;
}

TensorView ContinuousValues::forward(Context& ctx, const TokenBatch& batch, bool training,
                                     bool save) {
  const std::span<const float> values = batch.host_unique_values();
  const Packing rows = batch.value_rows();
  const DType type = linear2_.weight()->value.dtype();
  const Shape shape{static_cast<int64_t>(values.size()), linear2_.out()};
  const TensorView v = clamped(ctx, values, type);
  const TensorView hidden = ctx.activations().take(shape, type);
  const TensorView projected = ctx.activations().take(shape, type);
  const TensorView value = ctx.activations().take(shape, type);
  linear1_.forward(ctx, v, rows, training, hidden);
  activation(ctx, Activation::relu, hidden, hidden);
  linear2_.forward(ctx, hidden, rows, training, projected);
  saved_ = {};
  norm_.forward(ctx, projected, {}, {}, nullptr, value, save && trainable() ? &saved_ : nullptr);
  in_ = v;
  hidden_ = hidden;
  return value;
}

void ContinuousValues::backward(Context& ctx, const TokenBatch& batch, bool training,
                                TensorView dvalue) {
  const Packing rows = batch.value_rows();
  Arena::Scope scratch(ctx.scratch());
  norm_.backward(ctx, saved_, dvalue, {}, nullptr, dvalue, {});
  const TensorView dhidden = scratch.take(dvalue.shape(), dvalue.dtype());
  linear2_.backward(ctx, hidden_, dvalue, rows, training, false, dhidden);
  activation_backward(ctx, Activation::relu, hidden_, dhidden, dhidden);
  linear1_.backward(ctx, in_, dhidden, rows, training, false, {});
}

CategoryValues::CategoryValues(const ParameterMaker& make, int64_t rows, int64_t dim)
    : table_(&make.parameter("value_encoder.embedding.weight", {rows, dim})),
      norm_(make.norm("value_encoder.enc_norm", dim)) {}

TensorView CategoryValues::forward(Context& ctx, const TokenBatch& batch, bool, bool save) {
  const std::span<const float> values = batch.host_unique_values();
  const int64_t rows = table_->value.dim(0);
  std::vector<int32_t> categories;
  for (const float value : values) {
    const float whole = std::trunc(value);
    if (!(whole >= 0 && whole < static_cast<float>(rows)))
      throw DataError(cat("scgpt: the value ", value, " is no category of the value encoder, ",
                          "which has 0 to ", rows - 1),
                      "E-VALUE-CATEGORY");
    categories.push_back(static_cast<int32_t>(whole));
  }
  categories_.assign(ctx, categories, rows);
  const Shape shape{static_cast<int64_t>(values.size()), table_->value.dim(1)};
  const DType type = table_->value.dtype();
  const TensorView embedded = ctx.activations().take(shape, type);
  const TensorView value = ctx.activations().take(shape, type);
  embedding_sum(ctx, std::as_const(table_->value).view(), categories_.index(), {}, {}, {},
                batch.value_rows(), embedded);
  saved_ = {};
  norm_.forward(ctx, embedded, {}, {}, nullptr, value, save && trainable() ? &saved_ : nullptr);
  return value;
}

void CategoryValues::backward(Context& ctx, const TokenBatch& batch, bool, TensorView dvalue) {
  norm_.backward(ctx, saved_, dvalue, {}, nullptr, dvalue, {});
  if (!table_->trainable()) return;
  Arena::Scope scratch(ctx.scratch());
  const TensorView dtable = scratch.take(table_->value.shape(), dvalue.dtype());
  embedding_sum_backward(ctx, dvalue, categories_.uses(), {}, batch.value_rows(), dtable);
  add(ctx, std::as_const(table_->grad).view(), dtable, table_->grad.view());
}

std::unique_ptr<ValueRows> make_value_rows(const ParameterMaker& make, const ScgptConfig& config) {
  switch (config.value_style) {
    case ValueStyle::continuous:
      return std::make_unique<ContinuousValues>(make, config.dim);
    case ValueStyle::category:
      return std::make_unique<CategoryValues>(make, config.categories, config.dim);
    case ValueStyle::scaling:
      break;
  }
  return nullptr;
}

}  // namespace scgraft
