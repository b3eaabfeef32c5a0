// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_weight.h"

#include <algorithm>
#include <utility>

#include "kernels/linear_weight_impl.h"
#include "kernels/packing.h"
#include "runtime/parallel.h"

namespace scgraft {

dnnl::engine& dnnl_engine() {
  static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

void PackedWeight::Impl::reorder() {
  const auto type = raw.dtype() == DType::bf16 ? Memory::data_type::bf16 : Memory::data_type::f32;
  const Memory::desc desc({in, out}, type,
                          use == PackedFor::forward ? Memory::dims{1, in} : Memory::dims{out, 1});
  Memory source(desc, dnnl_engine(), const_cast<void*>(raw.data()));
  dnnl::stream stream(dnnl_engine());
  dnnl::reorder(source, packed).execute(stream, source, packed);
  stream.wait();
}

PackedWeight::PackedWeight() = default;
PackedWeight::~PackedWeight() = default;
PackedWeight::PackedWeight(PackedWeight&&) noexcept = default;
PackedWeight& PackedWeight::operator=(PackedWeight&&) noexcept = default;

int64_t PackedWeight::in() const { return impl_->in; }
int64_t PackedWeight::out() const { return impl_->out; }
PackedFor PackedWeight::use() const { return impl_->use; }
ConstTensorView PackedWeight::matrix() const { return impl_->matrix; }
int64_t PackedWeight::nbytes() const {
  if (!impl_->copy.empty()) return impl_->copy.nbytes();
  return impl_->packed ? static_cast<int64_t>(impl_->packed.get_desc().get_size()) : 0;
}

void PackedWeight::pack_on_device(Context& ctx, ConstTensorView weight, PackedFor use,
                                  DType dtype) {
  const auto computed = [](DType t) {
    return t == DType::f32 || t == DType::bf16 || t == DType::f16;
  };
  require<TypeError>(computed(weight.dtype()) && computed(dtype),
                     "linear: on a GPU weights are f32, bf16 or f16, got ", weight.dtype(),
                     " to be multiplied in ", dtype);
  const bool forward = use == PackedFor::forward;
  auto impl = std::make_unique<Impl>();
  impl->in = weight.dim(forward ? 1 : 0);
  impl->out = weight.dim(forward ? 0 : 1);
  impl->use = use;
  impl->dtype = dtype;
  constexpr int64_t kBytes = 16;  // of one load
  const int64_t row_bytes = weight.dim(1) * size_of(dtype);
  if (weight.dtype() == dtype && row_bytes % kBytes == 0 &&
      reinterpret_cast<uintptr_t>(weight.data()) % kBytes == 0) {
    impl->matrix = weight;
  } else {
    constexpr int64_t kColumns = 8;
    const Shape shape{weight.dim(0), (weight.dim(1) + kColumns - 1) / kColumns * kColumns};
    // Memory of a device is not asked for again after every step.
    if (impl_ != nullptr && impl_->copy.shape() == shape && impl_->copy.dtype() == dtype)
      impl->copy = std::move(impl_->copy);
    else
      impl->copy = Tensor(shape, dtype, ctx.device());
    if constexpr (kBuiltWithCuda) cuda::copy_weight(ctx, weight, impl->copy.view());
    impl->matrix = std::as_const(impl->copy).view();
  }
  impl_ = std::move(impl);
}

void PackedWeight::pack(Context& ctx, ConstTensorView weight, PackedFor use, DType dtype) {
  ctx.require_here("linear", weight);
  require(weight.rank() == 2, "linear: weight must be [out, in], got ", weight.shape());
  if (ctx.device().is_cuda()) return pack_on_device(ctx, weight, use, dtype);
  const bool forward = use == PackedFor::forward;
  if (impl_ != nullptr && impl_->packed && impl_->use == use && impl_->dtype == dtype &&
      impl_->raw.shape() == weight.shape() && impl_->raw.dtype() == weight.dtype()) {
    impl_->raw = weight;
    impl_->reorder();
    return;
  }
  auto impl = std::make_unique<Impl>();
  impl->in = weight.dim(forward ? 1 : 0);
  impl->out = weight.dim(forward ? 0 : 1);
  impl->use = use;
  impl->dtype = dtype;
  impl->raw = weight;
  if (ctx.reference() || weight.dtype() == DType::f64) {
    impl_ = std::move(impl);
    return;
  }
  require<TypeError>(dtype == DType::f32 || dtype == DType::bf16,
                     "linear: weights are multiplied in f32 or bf16, got ", dtype);

  // The library fixes the thread count of a primitive when it is made; ours run on one.
  const OneThread while_primitives_are_made;
  const auto type =
      dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const int64_t k = impl->in;
  const int64_t n = impl->out;
  impl->x_desc = dnnl::memory::desc({kPanelRows, k}, type, dnnl::memory::format_tag::ab);
  impl->y_desc = dnnl::memory::desc({kPanelRows, n}, dnnl::memory::data_type::f32,
                                    dnnl::memory::format_tag::ab);
  impl->bias_desc =
      dnnl::memory::desc({1, n}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab);
  dnnl::memory::desc w_desc({k, n}, type, dnnl::memory::format_tag::any);
  auto make = [&](bool bias, bool sum) {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (sum) {
      dnnl::post_ops ops;
      ops.append_sum(1.0f);
      attr.set_post_ops(ops);
    }
    const auto desc = bias ? dnnl::matmul::desc(impl->x_desc, w_desc, impl->bias_desc, impl->y_desc)
                           : dnnl::matmul::desc(impl->x_desc, w_desc, impl->y_desc);
    dnnl::matmul::primitive_desc pd(desc, attr, dnnl_engine());
    w_desc = pd.weights_desc();  // the first choice of layout holds for all three
    impl->scratchpad_bytes = std::max(impl->scratchpad_bytes, pd.scratchpad_desc().get_size());
    return Impl::Product{dnnl::matmul(pd), pd.scratchpad_desc()};
  };
  impl->plain = make(false, false);
  impl->with_bias = make(true, false);
  impl->accumulating = make(false, true);

  impl->packed = dnnl::memory(w_desc, dnnl_engine());
  impl->reorder();
  impl_ = std::move(impl);
}

}  // namespace scgraft
