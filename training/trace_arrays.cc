// SPDX-License-Identifier: Apache-2.0
#include "training/trace_arrays.h"

#include <cstring>
#include <numeric>
#include <set>

#include "kernels/cross_entropy.h"
#include "kernels/rotation.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

// Adds the gradient by R [blocks, n, n] to `to`, of what is above the diagonal of (R - R^T) / 2.
void add_rotation_gradient(const Tensor& grad, int64_t n, float* to) {
  const auto upper = grad.as<float, 2>();
  for (int64_t b = 0; b < upper.dim(0); ++b)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) {
        const float half = upper(b, triangle_index(i, j, n)) / 2;
        to[(b * n + i) * n + j] += half;
        to[(b * n + j) * n + i] -= half;
      }
}

}  // namespace

const Tensor* optional_input(const TraceArrays& inputs, const char* name) {
  const auto it = inputs.find(name);
  return it == inputs.end() ? nullptr : &it->second;
}

const Tensor& required_input(const TraceArrays& inputs, const char* name, const char* needed) {
  const Tensor* t = optional_input(inputs, name);
  if (t == nullptr)
    throw DataError(cat("the inputs have no array \"", name, "\"; trace needs ", needed),
                    "E-TRACE-INPUT");
  return *t;
}

double element(const Tensor& t, int64_t i) {
  double value = 0;
  visit_any(t.dtype(), [&]<class T>(Type<T>) {
    if constexpr (std::is_arithmetic_v<T>) value = static_cast<double>(t.as<T>()[i]);
  });
  return value;
}

TokenGrid::TokenGrid(const Tensor& mask, bool token) {
  require<DataError>(mask.rank() == 2, "the mask of tokens must be [batch, seq], got ",
                     mask.shape());
  batch = mask.dim(0);
  seq = mask.dim(1);
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<int64_t>& row = columns.emplace_back();
    for (int64_t s = 0; s < seq; ++s)
      if ((element(mask, b * seq + s) != 0) == token) row.push_back(s);
  }
}

void TokenGrid::keep_all() {
  for (std::vector<int64_t>& row : columns) {
    row.resize(static_cast<size_t>(seq));
    std::iota(row.begin(), row.end(), 0);
  }
}

void TokenGrid::require_grid(const Tensor& t, const char* name) const {
  require<DataError>(t.shape() == (Shape{batch, seq}), name, " must be ", Shape{batch, seq},
                     " like the mask of tokens, got ", t.shape());
}

Tensor TokenGrid::padded(ConstTensorView packed, int64_t width) const {
  int64_t tokens = 0;
  for (const std::vector<int64_t>& row : columns) tokens += static_cast<int64_t>(row.size());
  const int64_t more = batch > 0 ? (packed.dim(0) - tokens) / batch : 0;
  const int64_t wide = seq + more;
  Tensor out(width > 0 ? Shape{batch, wide, width} : Shape{batch, wide}, DType::f32);
  const Tensor host = host_copy(packed);
  const int64_t n = width > 0 ? width : 1;
  const float* from = host.as<float>();
  const auto put = [&](int64_t b, int64_t s) {
    std::memcpy(out.as<float>() + (b * wide + s) * n, from, static_cast<size_t>(n) * sizeof(float));
    from += n;
  };
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<int64_t>& row = columns[static_cast<size_t>(b)];
    for (size_t i = 0; i < row.size(); ++i) {
      put(b, row[i] + (i == 0 ? 0 : more));
      for (int64_t j = 0; i == 0 && j < more; ++j) put(b, row[0] + 1 + j);
    }
  }
  return out;
}

Tensor host_copy(ConstTensorView view) {
  Tensor out(view.shape(), view.dtype());
  copy(view, out.view());
  return out;
}

Tensor scalar(double value) {
  Tensor out(Shape{}, DType::f32);
  out.as<float>()[0] = static_cast<float>(value);
  return out;
}

double sum_of(ConstTensorView values) {
  const Tensor host = host_copy(values);
  double total = 0;
  for (int64_t i = 0; i < host.numel(); ++i) total += static_cast<double>(host.as<float>()[i]);
  return total;
}

double mean_cross_entropy(Context& ctx, ConstTensorView logits, const std::vector<int32_t>& labels,
                          TensorView dlogits) {
  int64_t counted = 0;
  for (const int32_t label : labels) {
    require<DataError>(label < logits.dim(1), "labels holds ", label, ", the head has ",
                       logits.dim(1), " classes");
    counted += label >= 0;
  }
  require<DataError>(counted > 0, "labels has no label at all");
  const Shape shape{static_cast<int64_t>(labels.size())};
  Tensor on_device(shape, DType::i32, ctx.device());
  copy(ctx, view_of(labels.data(), shape), on_device.view());
  const TensorView each = ctx.activations().take(shape, DType::f32);
  cross_entropy(ctx, logits, std::as_const(on_device).view(), {},
                1.0 / static_cast<double>(counted), each, dlogits);
  const double sum = sum_of(each);
  return sum / static_cast<double>(counted);
}

void add_gradients(const ScpeftAdapter& adapter, const std::vector<Parameter*>& trained,
                   TraceArrays& out) {
  std::set<const Parameter*> in_arrays;
  for (const auto& [name, array] : adapter.arrays) {
    Tensor all(array.shape, DType::f32);
    float* to = all.as<float>();
    using Form = ScpeftAdapter::Array::Form;
    for (const Parameter* p : array.parts) {
      in_arrays.insert(p);
      if (array.form != Form::rows) {  // the array's gradient is that of all of them together
        const Tensor grad = p->grad.to(Device::cpu());
        if (array.form == Form::rotation) {
          add_rotation_gradient(grad, array.shape[1], to);
          continue;
        }
        for (int64_t i = 0; i < grad.numel(); ++i) to[i] += grad.as<float>()[i];
        continue;
      }
      const ConstTensorView grad = std::as_const(p->grad).view();
      copy(grad, TensorView(to, grad.shape(), DType::f32));
      to += grad.numel();
    }
    out["grad." + name] = std::move(all);
  }
  for (const Parameter* p : trained)
    if (!in_arrays.contains(p)) out["grad." + p->name] = p->grad.to(Device::cpu());
}

}  // namespace scgraft
