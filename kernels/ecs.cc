// SPDX-License-Identifier: Apache-2.0
#include "kernels/ecs.h"

#include <algorithm>

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "kernels/unit_rows.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

constexpr double kFloor = 1e-12;

// Every row of the cosine matrix is computed whole, both halves: a row then owns its loss and its
// gradient, and cos(i, j) and cos(j, i) are the same bits because a product commutes.
template <class T>
void ecs_cpu(Context& ctx, Array<const T, 2> x, double threshold, double scale, T* loss,
             const Array<T, 2>* dx) {
  const int64_t cells = x.dim(0);
  const int64_t dim = x.dim(1);
  Arena::Scope scratch(ctx.scratch());
  const DType dtype = DTypeOf<T>::value;
  const Array<T, 2> unit = scratch.take({cells, dim}, dtype).template as<T, 2>();
  const Array<T, 2> gradient = scratch.take({cells, dim}, dtype).template as<T, 2>();
  T* norm = scratch.take({cells}, dtype).template as<T>();
  T* row_loss = scratch.take({cells}, dtype).template as<T>();

  parallel_for(ctx, cells,
               [&](int64_t i) { norm[i] = unit_row(x.row(i), dim, kFloor, unit.row(i)); });

  const T limit = static_cast<T>(threshold);
  // Each pair stands in the mean twice.
  const T factor =
      static_cast<T>(-4 * scale / (static_cast<double>(cells) * static_cast<double>(cells)));
  parallel_for(ctx, cells, [&](int64_t i) {
    T sum = 0;
    T* g = gradient.row(i);
    std::fill_n(g, dim, T(0));
    for (int64_t j = 0; j < cells; ++j) {
      const T cosine = j == i ? T(0) : ordered_dot(unit.row(i), unit.row(j), dim);
      const T excess = (cosine < 0 ? T(0) : cosine) - limit;
      sum += 1 - excess * excess;
      if (dx == nullptr || cosine <= 0) continue;
      const T w = factor * excess;
      const T* other = unit.row(j);
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) g[d] += w * other[d];
    }
    row_loss[i] = sum;
    if (dx != nullptr) add_unit_gradient(unit.row(i), g, norm[i], kFloor, dim, dx->row(i));
  });

  T total = 0;
  for (int64_t i = 0; i < cells; ++i) total += row_loss[i];
  *loss = cells > 0 ? total / static_cast<T>(cells) / static_cast<T>(cells) : T(0);
}

}  // namespace

void ecs(Context& ctx, ConstTensorView x, double threshold, double scale, TensorView loss,
         TensorView dx) {
  const char* op = "ecs";
  ctx.require_here(op, x, loss, dx);
  require(x.rank() == 2, op, ": x must be [cells, dim], got ", x.shape());
  require_tensor(op, "loss", loss, {1}, sum_type(x.dtype()));
  require_optional(op, "dx", dx, x.shape(), x.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::ecs(ctx, x, threshold, scale, loss, dx);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    if (dx.empty()) return ecs_cpu<T>(ctx, x.as<T, 2>(), threshold, scale, loss.as<T>(), nullptr);
    const Array<T, 2> to = dx.as<T, 2>();
    ecs_cpu<T>(ctx, x.as<T, 2>(), threshold, scale, loss.as<T>(), &to);
  });
}

}  // namespace scgraft
