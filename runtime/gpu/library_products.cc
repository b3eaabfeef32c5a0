// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/library_products.h"

#include <map>

#include "runtime/error.h"
#include "runtime/gpu/driver.h"
#include "runtime/gpu/libraries.h"

namespace scgraft::gpu {
namespace {

using namespace cublaslt;

constexpr auto kWorkspace = static_cast<uint64_t>(LibraryProducts::kWorkspaceBytes);
// Batches differ in their number of rows; what was chosen for old ones is forgotten some time.
constexpr size_t kMostPlans = 2048;

[[noreturn]] void fail(const std::string& text) {
  DeviceError error(text, "E-LIBRARY");
  error.set_hint("-s train.linear_backend=own");
  throw error;
}

DataType data_type(DType t) {
  if (t == DType::bf16) return DataType::bf16;
  return t == DType::f16 ? DataType::f16 : DataType::f32;
}

// Owns one of the library's descriptors.
template <class T>
using Owned = std::unique_ptr<T, Status (*)(T*)>;

// A product with everything the library wants to be told, and what it chose.
struct Plan {
  Owned<ProductDesc> desc;
  Owned<Layout> w, x, y;
  Choice choice;
};

}  // namespace

struct LibraryProducts::Impl {
  const Functions& f;
  Device device;
  Library* library = nullptr;
  std::map<LibraryProduct, Plan> plans;

  Impl(const Functions& functions, Device where) : f(functions), device(where) {}
  ~Impl() {
    plans.clear();
    if (library != nullptr) (void)f.destroy(library);
  }

  void check(Status status, const char* what, const LibraryProduct& p) const {
    if (status == Status::success) return;
    fail(cat("cuBLASLt refuses ", what, " of [", p.rows, ", ", p.k, "] by ",
             p.w_turned ? "" : "the transpose of ", "[", p.w_turned ? p.k : p.n, ", ",
             p.w_turned ? p.n : p.k, "] in ", p.type, ": ", f.status_text(status)));
  }

  Plan make(const LibraryProduct& p) const;
  const Plan& plan(const LibraryProduct& p);
};

// Column-major, as the library sees them: y is [n, rows], x [k, rows], and w [k, n], or [n, k] when
// it is turned. So y = op(w) x, and the bias runs along the rows of the result, as it should.
Plan LibraryProducts::Impl::make(const LibraryProduct& p) const {
  const auto ask = [&](Status status, const char* what) { check(status, what, p); };
  ProductDesc* desc = nullptr;
  ask(f.create_product(&desc, ComputeType::f32, DataType::f32), "a product");
  Owned<ProductDesc> own_desc(desc, f.destroy_product);
  const auto set = [&](ProductAttribute attribute, auto value) {
    ask(f.set_product(desc, attribute, &value, sizeof value), "a property");
  };
  set(ProductAttribute::transpose_a, p.w_turned ? Transpose::none : Transpose::transposed);
  set(ProductAttribute::transpose_b, Transpose::none);
  set(ProductAttribute::epilogue, p.bias ? Epilogue::bias : Epilogue::none);
  if (p.bias) {
    // The alignment of this address counts when algorithms are chosen: that of any element.
    const auto any = static_cast<uintptr_t>(size_of(p.result));
    set(ProductAttribute::bias_pointer, reinterpret_cast<const void*>(any));
  }

  const auto layout = [&](DType type, int64_t rows, int64_t cols, int64_t step) {
    Layout* made = nullptr;
    ask(f.create_layout(&made, data_type(type), static_cast<uint64_t>(rows),
                        static_cast<uint64_t>(cols), step),
        "a matrix");
    return Owned<Layout>(made, f.destroy_layout);
  };
  Owned<Layout> w =
      p.w_turned ? layout(p.type, p.n, p.k, p.w_step) : layout(p.type, p.k, p.n, p.w_step);
  Owned<Layout> x = layout(p.type, p.k, p.rows, p.x_step);
  Owned<Layout> y = layout(p.result, p.n, p.rows, p.n);

  Preference* preference = nullptr;
  ask(f.create_preference(&preference), "a preference");
  const Owned<Preference> own_preference(preference, f.destroy_preference);
  const auto prefer = [&](PreferenceAttribute attribute, auto value) {
    ask(f.set_preference(preference, attribute, &value, sizeof value), "a preference");
  };
  prefer(PreferenceAttribute::most_workspace, kWorkspace);
  prefer(PreferenceAttribute::reduction_schemes, uint32_t{0});
  const auto result_alignment = static_cast<uint32_t>(p.aligned ? 16 : size_of(p.result));
  prefer(PreferenceAttribute::alignment_a, uint32_t{16});
  prefer(PreferenceAttribute::alignment_b, uint32_t{16});
  prefer(PreferenceAttribute::alignment_c, result_alignment);
  prefer(PreferenceAttribute::alignment_d, result_alignment);

  Choice choice = {};
  int found = 0;
  ask(f.choose(library, desc, w.get(), x.get(), y.get(), y.get(), preference, 1, &choice, &found),
      "a product");
  ask(found > 0 ? choice.status : Status::not_supported, "a product");
  return {std::move(own_desc), std::move(w), std::move(x), std::move(y), choice};
}

const Plan& LibraryProducts::Impl::plan(const LibraryProduct& p) {
  const auto known = plans.find(p);
  if (known != plans.end()) return known->second;
  if (plans.size() >= kMostPlans) plans.clear();
  use(device);
  return plans.emplace(p, make(p)).first->second;
}

LibraryProducts::LibraryProducts(Device device) {
  const Loaded<Functions>& library = cublaslt_library();
  if (!library) fail(library.problem);
  impl_ = std::make_unique<Impl>(library.functions, device);
  use(device);
  const Status status = library.functions.create(&impl_->library);
  if (status != Status::success)
    fail(cat("cuBLASLt (", library.file, ") does not start on ", device, ": ",
             library.functions.status_text(status)));
}

LibraryProducts::~LibraryProducts() = default;

void LibraryProducts::multiply(const LibraryProduct& product, const Operands& o,
                               StreamHandle stream) {
  if (product.rows == 0) return;
  const Plan& plan = impl_->plan(product);
  const Functions& f = impl_->f;
  if (product.bias)
    impl_->check(
        f.set_product(plan.desc.get(), ProductAttribute::bias_pointer, &o.bias, sizeof o.bias),
        "the bias", product);
  const float one = 1, weight_of_c = o.c != nullptr ? 1.0f : 0.0f;
  use(impl_->device);
  impl_->check(f.multiply(impl_->library, plan.desc.get(), &one, o.w, plan.w.get(), o.x,
                          plan.x.get(), &weight_of_c, o.c != nullptr ? o.c : o.y, plan.y.get(), o.y,
                          plan.y.get(), &plan.choice.algorithm, o.workspace, kWorkspace, stream),
               "the product", product);
}

std::shared_ptr<LibraryProducts> make_library_products(Device device) {
  return std::make_shared<LibraryProducts>(device);
}

}  // namespace scgraft::gpu
