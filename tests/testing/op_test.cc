// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/op_test.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>

#include "runtime/random.h"

namespace scgraft {

namespace {

struct Running {
  Device device;
  std::vector<std::shared_ptr<const void>> kept;
};
thread_local Running running;

// Whether the operation of this test file was built with a CUDA kernel: <op>_test.cc, or
// <op>_<part>_test.cc where an operation has more than one file.
bool has_cuda_kernel(const std::string& test_file) {
  std::string stem = std::filesystem::path(test_file).stem().string();
  const std::string listed = cat(",", SCGRAFT_CUDA_OPS, ",");
  while (stem.find('_') != std::string::npos) {
    stem.resize(stem.rfind('_'));
    if (listed.find(cat(",", stem, ",")) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

std::vector<OpMode> op_modes(const std::string& test_file) {
  std::vector<OpMode> modes = {
      {Device::cpu(), false, DType::f32, "cpu_f32"},
      {Device::cpu(), true, DType::f32, "cpu_f32_definition"},
      {Device::cpu(), true, DType::f64, "cpu_f64_definition"},
  };
  if (has_cuda_kernel(test_file)) {
    if (cuda_device_count() > 0)
      modes.push_back({Device::cuda(), false, DType::f32, "cuda_f32"});
    else
      modes.push_back(
          {Device::cpu(), false, DType::f32, "cuda_f32", "this machine has no CUDA device"});
  }
  return modes;
}

namespace {

Tensor on_test_device(Tensor t) {
  return test_device().is_cpu() ? std::move(t) : t.to(test_device());
}

template <class T>
Tensor whole_numbers(const std::vector<T>& values) {
  Tensor t(Shape{static_cast<int64_t>(values.size())}, DTypeOf<T>::value);
  std::copy(values.begin(), values.end(), t.as<T>());
  return on_test_device(std::move(t));
}

}  // namespace

Device test_device() { return running.device; }

void keep_for_test(std::shared_ptr<const void> thing) { running.kept.push_back(std::move(thing)); }

OpTest::OpTest()
    : ctx_(GetParam().device,
           ContextOptions{
               .threads = 2, .reference = GetParam().reference, .linear = GetParam().linear}),
      dtype_(GetParam().dtype) {
  running.device = GetParam().device;
}

OpTest::~OpTest() { running = {}; }

void OpTest::SetUp() {
  if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
}

Tensor tensor_of(Shape shape, DType dtype, const std::vector<double>& values) {
  require(shape.numel() == static_cast<int64_t>(values.size()), "tensor_of: ", values.size(),
          " values for shape ", shape);
  Tensor t(shape, dtype);
  if (dtype == DType::bf16) {
    for (size_t i = 0; i < values.size(); ++i)
      t.as<bf16>()[i] = bf16(static_cast<float>(values[i]));
  } else if (dtype == DType::f16) {
    for (size_t i = 0; i < values.size(); ++i) t.as<f16>()[i] = f16(static_cast<float>(values[i]));
  } else {
    visit_real(dtype, [&]<class T>(Type<T>) {
      for (size_t i = 0; i < values.size(); ++i) t.as<T>()[i] = static_cast<T>(values[i]);
    });
  }
  return on_test_device(std::move(t));
}

Tensor on_host(ConstTensorView view) {
  Tensor t(view.shape(), view.dtype());
  copy(view, t.view());
  return t;
}

Tensor ints_of(const std::vector<int32_t>& values) { return whole_numbers(values); }

Tensor in_f64(const Tensor& t) { return on_host(t.view()).converted(DType::f64); }

Tensor OpTest::tensor(Shape shape, const std::vector<double>& values) const {
  return tensor_of(shape, dtype(), values);
}

Tensor OpTest::random(Shape shape, double scale) {
  RandomStream stream(20, RandomUse::initialise, ++draws_);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = scale * stream.normal();
  return tensor_of(shape, dtype(), values);
}

std::vector<DType> OpTest::storage_types() const {
  if (GetParam().device.is_cpu()) return {GetParam().dtype};
  return {GetParam().dtype, DType::bf16, DType::f16};
}

Tensor OpTest::poisoned(Shape shape, DType dtype) const {
  return tensor_of(shape, dtype,
                   std::vector<double>(static_cast<size_t>(shape.numel()),
                                       std::numeric_limits<double>::quiet_NaN()));
}

Tensor OpTest::ints(const std::vector<int32_t>& values) const { return ints_of(values); }

Tensor OpTest::longs(const std::vector<int64_t>& values) const { return whole_numbers(values); }

Tensor OpTest::bytes(const std::vector<uint8_t>& values) const { return whole_numbers(values); }

std::vector<double> values_of(ConstTensorView view) {
  if (view.device().is_cuda()) return values_of(on_host(view).view());
  std::vector<double> out(static_cast<size_t>(view.numel()));
  visit_any(view.dtype(), [&]<class T>(Type<T>) {
    const T* data = view.as<T>();
    for (size_t i = 0; i < out.size(); ++i) {
      if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>)
        out[i] = static_cast<double>(static_cast<float>(data[i]));
      else
        out[i] = static_cast<double>(data[i]);
    }
  });
  return out;
}

void expect_close(ConstTensorView got, const std::vector<double>& want, int64_t k) {
  const std::vector<double> have = values_of(got);
  ASSERT_EQ(have.size(), want.size());
  double largest = 0;
  for (double w : want) largest = std::max(largest, std::abs(w));
  const Tolerance t = tolerance(got.dtype(), k);
  for (size_t i = 0; i < want.size(); ++i) {
    const double limit = t.atol_of_largest * largest + t.rtol * std::abs(want[i]);
    ASSERT_TRUE(std::abs(have[i] - want[i]) <= limit)
        << "element " << i << " of " << got.shape() << ": got " << have[i] << ", want " << want[i]
        << ", allowed difference " << limit;
  }
}

void expect_close(ConstTensorView got, ConstTensorView want, int64_t k) {
  ASSERT_EQ(got.shape(), want.shape());
  expect_close(got, values_of(want), k);
}

void expect_same_bits(ConstTensorView got, ConstTensorView want) {
  ASSERT_EQ(got.shape(), want.shape());
  ASSERT_EQ(got.dtype(), want.dtype());
  const Tensor got_copy = on_host(got), want_copy = on_host(want);
  const auto* a = static_cast<const std::byte*>(got_copy.view().data());
  const auto* b = static_cast<const std::byte*>(want_copy.view().data());
  const int64_t size = size_of(got.dtype());
  for (int64_t i = 0; i < got.nbytes(); ++i)
    ASSERT_EQ(a[i], b[i]) << "element " << i / size << " of " << got.shape() << " differs";
}

void expect_error(const std::string& part, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one that says \"" << part << '"';
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
  }
}

void expect_gradient(Tensor& x, const std::function<double()>& loss, ConstTensorView gradient) {
  ASSERT_EQ(x.dtype(), DType::f64) << "finite differences are taken in f64 only";
  ASSERT_EQ(x.shape(), gradient.shape());
  const std::vector<double> want = values_of(gradient);
  double largest = 1e-3;
  for (double w : want) largest = std::max(largest, std::abs(w));
  double* data = x.as<double>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double kept = data[i];
    data[i] = kept + kDifferenceStep;
    const double up = loss();
    data[i] = kept - kDifferenceStep;
    const double down = loss();
    data[i] = kept;
    const double difference = (up - down) / (2 * kDifferenceStep);
    ASSERT_NEAR(want[static_cast<size_t>(i)], difference, kDifferenceTolerance * largest)
        << "element " << i << " of " << x.shape();
  }
}

double dot(ConstTensorView a, ConstTensorView b) {
  const std::vector<double> x = values_of(a);
  const std::vector<double> y = values_of(b);
  require(x.size() == y.size(), "dot: ", x.size(), " and ", y.size(), " elements");
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

std::string test_library() { return SCGRAFT_TEST_LIBRARY; }

std::string shared_path(const std::string& relative) {
  const char* root = std::getenv("SCGRAFT_TEST_DATA");
  if (root == nullptr) return {};
  const std::filesystem::path path = std::filesystem::path(root) / relative;
  return std::filesystem::exists(path) ? path.string() : std::string();
}

}  // namespace scgraft
