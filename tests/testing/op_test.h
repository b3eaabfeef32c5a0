// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/context.h"
#include "runtime/tensor.h"
#include "tests/tolerance.h"

namespace scgraft {

// One way of executing an operation in this build.
struct OpMode {
  Device device;
  bool reference;  // the plain-loop definition
  DType dtype;     // f32 or f64
  std::string name;
  std::string missing = {};  // why this machine cannot run it; its tests are skipped and say so
  LinearBackend linear = LinearBackend::own;
};
// Modes of the operation tested by <stem>_test.cc or <stem>_<part>_test.cc: on the CPU, and on CUDA
// where it has a kernel.
std::vector<OpMode> op_modes(const std::string& test_file);

// Where tensors of the running test are made: the device of its mode, or the CPU.
Device test_device();
// Keeps something alive until the running OpTest ends.
void keep_for_test(std::shared_ptr<const void> thing);

// Fixture of operation tests: every test runs on every mode of this build.
//
//   class MeanPoolTest : public OpTest {};
//   INSTANTIATE_OP_TEST(MeanPoolTest);
//   TEST_P(MeanPoolTest, AveragesOnlyTheValidTokens) { ... }
class OpTest : public ::testing::TestWithParam<OpMode> {
 public:
  OpTest();
  ~OpTest() override;
  void SetUp() override;
  Context& ctx() { return ctx_; }
  DType dtype() const { return dtype_; }
  // What this mode can store: its own type, and on CUDA bf16 and f16 too, with sums in f32.
  std::vector<DType> storage_types() const;
  // Real tensors that are made from now on have this type.
  void store(DType dtype) { dtype_ = dtype; }

  // Real tensors have the type dtype().
  Tensor tensor(Shape shape, const std::vector<double>& values) const;
  Tensor zeros(Shape shape) const { return Tensor(shape, dtype(), test_device()); }
  // Reproducible values, standard normal times scale.
  Tensor random(Shape shape, double scale = 1.0);
  // A fresh copy with every element NaN: outputs start poisoned, so that a missed element shows.
  Tensor poisoned(Shape shape) const { return poisoned(shape, dtype()); }
  Tensor poisoned(Shape shape, DType dtype) const;
  Tensor ints(const std::vector<int32_t>& values) const;
  Tensor longs(const std::vector<int64_t>& values) const;
  Tensor bytes(const std::vector<uint8_t>& values) const;

 private:
  Context ctx_;
  DType dtype_;
  uint32_t draws_ = 0;
};

#define INSTANTIATE_OP_TEST(Suite)                                                           \
  INSTANTIATE_TEST_SUITE_P(Modes, Suite, ::testing::ValuesIn(::scgraft::op_modes(__FILE__)), \
                           [](const auto& mode) { return mode.param.name; })

// A view of a shape inside a flat tensor that has one element more: it begins behind the first, so
// that nothing in it is aligned for vectors.
inline TensorView behind_first(Tensor& room, Shape shape) {
  return room.view().rows(1, room.dim(0)).reshape(shape);
}
// The values of an f32, f64, bf16 or integer tensor as doubles.
std::vector<double> values_of(ConstTensorView view);
// A tensor of the given type from doubles, on test_device().
Tensor tensor_of(Shape shape, DType dtype, const std::vector<double>& values);
// An i32 tensor on test_device().
Tensor ints_of(const std::vector<int32_t>& values);
// A copy in memory of the host, for the definition and for looking at elements.
Tensor on_host(ConstTensorView view);
// The same in f64.
Tensor in_f64(const Tensor& t);

// Every element within tolerance(got.dtype(), k).
void expect_close(ConstTensorView got, const std::vector<double>& want, int64_t k = 1);
void expect_close(ConstTensorView got, ConstTensorView want, int64_t k = 1);
// Same shape, type and bits.
void expect_same_bits(ConstTensorView got, ConstTensorView want);
// `call` throws scgraft::Error whose text contains `part`.
void expect_error(const std::string& part, const std::function<void()>& call);

// Central differences in f64 of  loss() = sum(weight * output)  against `gradient`.
//   x         the tensor to differentiate by (f64), restored afterwards
//   loss      recomputes everything from x
//   gradient  analytic d loss / d x, same shape
void expect_gradient(Tensor& x, const std::function<double()>& loss, ConstTensorView gradient);
// Sum of a*b over all elements, in f64.
double dot(ConstTensorView a, ConstTensorView b);

// Path inside the shared test data (golden cases, data sets), or empty when this machine has none.
std::string shared_path(const std::string& relative);

// The shared library that stands for cuBLASLt, cuDNN and NCCL on the emulated device
// (tests/libraries/gpu_libraries.cc); empty in other builds.
std::string test_library();

// Skips the test, saying which file is missing, when the shared test data is not on this machine.
#define SCGRAFT_NEEDS_SHARED(relative)          \
  if (::scgraft::shared_path(relative).empty()) \
  GTEST_SKIP() << "shared test data is not on this machine: " << (relative)

}  // namespace scgraft
