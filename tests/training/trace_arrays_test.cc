// SPDX-License-Identifier: Apache-2.0
#include "training/trace_arrays.h"

#include "kernels/rotation.h"
#include "tests/adapters/tiny_backbone.h"

namespace scgraft {
namespace {

// OFT of scPEFT: q, k and v have what is above the diagonal of (R - R^T) / 2.
TEST(TraceArrays, OneRotationHasTheGradientOfThreeProjections) {
  constexpr int64_t kBlocks = 2, kSize = 3;
  std::vector<Parameter> parts(3);
  ScpeftAdapter adapter;
  ScpeftAdapter::Array& array = adapter.arrays["Wqkv.R"];
  array.shape = {kBlocks, kSize, kSize};
  array.form = ScpeftAdapter::Array::Form::rotation;
  float factor = 1;
  for (Parameter& p : parts) {
    p.value = Tensor({kBlocks, 3}, DType::f32);
    p.grad = tensor_of({kBlocks, 3}, DType::f32, {1, 2, 3, 4, 5, 6});
    for (int64_t i = 0; i < 6; ++i) p.grad.as<float>()[i] *= factor;
    factor *= 10;
    array.parts.push_back(&p);
  }
  TraceArrays out;
  add_gradients(adapter, array.parts, out);
  ASSERT_EQ(out.size(), 1U);
  EXPECT_EQ(out.at("grad.Wqkv.R").shape(), array.shape);
  EXPECT_EQ(values_of(std::as_const(out.at("grad.Wqkv.R")).view()),
            (std::vector<double>{0, 55.5, 111, -55.5, 0, 166.5, -111, -166.5, 0,  //
                                 0, 222, 277.5, -222, 0, 333, -277.5, -333, 0}));
}

}  // namespace
}  // namespace scgraft
