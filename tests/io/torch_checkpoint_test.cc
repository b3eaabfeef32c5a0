// SPDX-License-Identifier: Apache-2.0
#include "io/torch_checkpoint.h"

#include "io/limits.h"
#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using pickled::dict;
using pickled::integer;
using pickled::text;
using pickled::whole;

struct Parsed {
  explicit Parsed(std::string content)
      : bytes(std::move(content)), file(TorchCheckpoint::parse(bytes_of(bytes), "t.pt")) {}
  std::string bytes;
  TorchCheckpoint file;
};

// One tensor "w" over one storage of the floats 0, 1, 2, ...
std::string one_tensor(int32_t count, int32_t offset, const std::vector<int32_t>& size,
                       const std::vector<int32_t>& stride, int32_t stored = -1) {
  std::vector<float> values;
  for (int32_t i = 0; i < (stored < 0 ? count : stored); ++i)
    values.push_back(static_cast<float>(i));
  return torch_file(
      whole(dict({{"w", pickled::tensor("FloatStorage", "0", count, offset, size, stride)}})),
      {{"0", packed(values)}});
}

std::vector<double> values_of_one(int32_t count, int32_t offset, const std::vector<int32_t>& size,
                                  const std::vector<int32_t>& stride) {
  const Parsed got(one_tensor(count, offset, size, stride));
  return values_of(got.file.tensor("w").view());
}

TEST(TorchCheckpoint, ReadsEveryElementType) {
  const std::vector<std::tuple<const char*, DType, std::string>> types = {
      {"FloatStorage", DType::f32, packed<float>({1, -2})},
      {"DoubleStorage", DType::f64, packed<double>({1, -2})},
      {"HalfStorage", DType::f16, packed<uint16_t>({0x3c00, 0xc000})},
      {"BFloat16Storage", DType::bf16, packed<uint16_t>({0x3f80, 0xc000})},
      {"LongStorage", DType::i64, packed<int64_t>({1, -2})},
      {"IntStorage", DType::i32, packed<int32_t>({1, -2})},
      {"ShortStorage", DType::i16, packed<int16_t>({1, -2})},
      {"CharStorage", DType::i8, packed<int8_t>({1, -2})},
      {"ByteStorage", DType::u8, packed<uint8_t>({1, 254})},
      {"BoolStorage", DType::boolean, packed<uint8_t>({1, 0})}};
  for (const auto& [name, dtype, bytes] : types) {
    SCOPED_TRACE(name);
    const Parsed got(torch_file(whole(dict({{"w", pickled::tensor(name, "0", 2, 0, {2}, {1})}})),
                                {{"0", bytes}}));
    ASSERT_EQ(got.file.tensors().size(), 1u);
    EXPECT_EQ(got.file.tensors()[0].dtype, dtype);
    const Tensor tensor = got.file.tensor("w");
    EXPECT_EQ(tensor.dtype(), dtype);
    EXPECT_EQ(std::string(static_cast<const char*>(tensor.view().data()), bytes.size()), bytes);
  }
}

TEST(TorchCheckpoint, StridesBecomeRowMajor) {
  using Values = std::vector<double>;
  EXPECT_EQ(values_of_one(6, 0, {2, 3}, {3, 1}), (Values{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(values_of_one(6, 0, {3, 2}, {1, 3}), (Values{0, 3, 1, 4, 2, 5}));  // transposed
  EXPECT_EQ(values_of_one(6, 1, {2, 2}, {3, 1}), (Values{1, 2, 4, 5}));        // columns 1 and 2
  EXPECT_EQ(values_of_one(6, 0, {3}, {2}), (Values{0, 2, 4}));                 // every other
  EXPECT_EQ(values_of_one(6, 5, {}, {}), (Values{5}));
  EXPECT_EQ(values_of_one(6, 0, {6}, {0}), (Values{0, 0, 0, 0, 0, 0}));  // expanded
  EXPECT_EQ(values_of_one(6, 0, {0, 3}, {3, 1}), Values{});
  EXPECT_EQ(values_of_one(6, 2, {1, 2}, {77, 1}), (Values{2, 3}));  // the stride of one row is idle
  std::vector<double> want;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) want.push_back(i + 2 * j + 6 * k);
  EXPECT_EQ(values_of_one(24, 0, {2, 3, 4}, {1, 2, 6}), want);
}

TEST(TorchCheckpoint, SharedStoragesAreSharedAndLieInTheFile) {
  const std::string pickle = whole(dict({
      {"tied", pickled::tensor("ByteStorage", "0", 4, 0, {4}, {1})},
      {"part", pickled::tensor("ByteStorage", "0", 4, 1, {2}, {1})},
  }));
  const Parsed got(torch_file(pickle, {{"0", "\x01\x02\x03\x04"}}));
  const Tensor tied = got.file.tensor("tied"), part = got.file.tensor("part");
  EXPECT_EQ(static_cast<const char*>(part.view().data()),
            static_cast<const char*>(tied.view().data()) + 1);
  const auto* first = static_cast<const char*>(tied.view().data());
  EXPECT_TRUE(first >= got.bytes.data() && first < got.bytes.data() + got.bytes.size());
  EXPECT_TRUE(tied.is_shared());
}

TEST(TorchCheckpoint, TensorsAreNamedByTheirWay) {
  const auto w = [](const char* key) {
    return pickled::tensor("FloatStorage", key, 1, 0, {1}, {1});
  };
  const std::string state = dict({{"model", dict({{"a.weight", w("0")}})},
                                  {"list", "](" + w("1") + integer(5) + "e"},
                                  {"epoch", integer(3)},
                                  {"lr", "G" + std::string("\x3f\xe0\0\0\0\0\0\0", 8)},
                                  {"name", text("run")},
                                  {"none", "N"},
                                  {"flag", "\x88"},
                                  {"odd", pickled::global("argparse", "Namespace") + ")\x81"}});
  const Parsed got(
      torch_file(whole(state), {{"0", packed<float>({1})}, {"1", packed<float>({2})}}));
  ASSERT_EQ(got.file.tensors().size(), 2u);
  EXPECT_EQ(got.file.tensors()[0].name, "model/a.weight");
  EXPECT_EQ(got.file.tensors()[1].name, "list/0");
  EXPECT_EQ(got.file.values(), nlohmann::json({{"model", nlohmann::json::object()},
                                               {"list", {nullptr, 5}},
                                               {"epoch", 3},
                                               {"lr", 0.5},
                                               {"name", "run"},
                                               {"none", nullptr},
                                               {"flag", true}}));
  expect_model_error("E-TENSOR-MISSING", "\"a.weight\" among its 2",
                     [&] { got.file.tensor("a.weight"); });
  EXPECT_TRUE(
      Parsed(torch_file(whole(w("0")), {{"0", packed<float>({1})}})).file.contains("tensor"));
}

TEST(TorchCheckpoint, TensorsMustFitTheirStorages) {
  const auto refused = [](const std::string& bytes, const std::string& part) {
    SCOPED_TRACE(part);
    expect_model_error("E-TORCH", part, [&] { TorchCheckpoint::parse(bytes_of(bytes), "t.pt"); });
  };
  refused(one_tensor(6, 0, {7}, {1}), "does not fit");
  refused(one_tensor(6, 1, {6}, {1}), "does not fit");
  refused(one_tensor(6, 6, {}, {}), "does not fit");
  refused(one_tensor(6, -1, {1}, {1}), "does not fit");
  refused(one_tensor(6, 0, {2, 3}, {4, 1}), "does not fit");
  refused(one_tensor(6, 0, {3}, {-1}), "does not fit");
  refused(one_tensor(6, 0, {-3}, {1}), "does not fit");
  refused(one_tensor(6, 0, {7}, {0}), "does not fit");  // a bomb: copies are never larger
  refused(one_tensor(1, 0, {1 << 30, 1 << 30}, {0, 0}), "does not fit");
  refused(one_tensor(6, 0, {2}, {INT32_MAX}), "does not fit");
  refused(one_tensor(6, 0, {6}, {1}, 5), "the archive holds 20 bytes");
  refused(one_tensor(INT32_MAX, 0, {6}, {1}, 6), "the archive holds 24 bytes");
  const std::string pickle =
      whole(dict({{"w", pickled::tensor("FloatStorage", "../0", 1, 0, {1}, {1})}}));
  refused(torch_file(pickle, {{"0", packed<float>({1})}}), "archive/data/../0");
  const std::string twice =
      whole(dict({{"w", pickled::tensor("FloatStorage", "0", 1, 0, {1}, {1})},
                  {"w", pickled::tensor("FloatStorage", "0", 1, 0, {1}, {1})}}));
  refused(torch_file(twice, {{"0", packed<float>({1})}}), "two tensors \"w\"");
}

TEST(TorchCheckpoint, ArchivesOfOtherThingsAreRefused) {
  const std::string pickle = whole("}");
  const auto refused = [](const std::vector<ArchiveEntry>& entries, const std::string& code,
                          const std::string& part) {
    const std::string bytes = zip_of(entries);
    expect_model_error(code, part, [&] { TorchCheckpoint::parse(bytes_of(bytes), "t.pt"); });
  };
  refused({{"a.txt", "hello"}}, "E-TORCH", "without data.pkl");
  refused({{"data.pkl", pickle}}, "E-TORCH", "without data.pkl");
  refused({{"a/data.pkl", pickle}, {"a/byteorder", "big"}}, "E-TORCH", "byte order \"big\"");
  refused({{"a/data.pkl", pickle}, {"a/byteorder", std::string(17, 'x')}}, "E-LIMIT",
          "limit is 16");
  refused({{"a/data.pkl", whole(pickled::global("os", "system") + text("x") + "\x85R")}},
          "E-PICKLE-GLOBAL", "os.system");
  const std::string tensor =
      whole(dict({{"w", pickled::tensor("FloatStorage", "0", 1, 0, {1}, {1})}}));
  refused({{"a/data.pkl", tensor}, {"a/data/0", packed<float>({1}), true}}, "E-TORCH",
          "compressed entry");
  const std::string fine = zip_of({{"a/data.pkl", pickle, true}, {"a/byteorder", "little"}});
  EXPECT_TRUE(TorchCheckpoint::parse(bytes_of(fine), "t.pt").tensors().empty());
}

// 2^40 ways lead to one number, and a dictionary holds itself: both end, soon, with an error.
TEST(TorchCheckpoint, SharedAndCyclicObjectsEnd) {
  const auto refused = [](const std::string& body, const std::string& part) {
    const std::string bytes = torch_file(whole(body), {});
    expect_model_error("E-TORCH", part, [&] { TorchCheckpoint::parse(bytes_of(bytes), "t.pt"); });
  };
  std::string doubling = "K\x01";
  for (int i = 0; i < 40; ++i) doubling += "2\x86";
  refused(doubling, "too many references");
  refused("}q\x01" + text("self") + "h\x01s", "deeper than 64");
  std::string deep = "N";
  for (int i = 0; i < limits::kPickleDepth + 1; ++i) deep += "\x85";
  refused(deep, "deeper than 64");
}

TEST(TorchCheckpoint, EveryCutIsNoticed) {
  const std::string good = one_tensor(6, 0, {2, 3}, {3, 1});
  for (size_t length = 0; length < good.size(); ++length) {
    const std::string cut = good.substr(0, length);
    EXPECT_THROW(TorchCheckpoint::parse(bytes_of(cut), "t.pt"), ModelError) << length;
  }
}

TEST(TorchCheckpoint, TensorsKeepTheFileMapped) {
  TemporaryFolder folder;
  Tensor tensor;
  {
    const std::string path = put(folder / "a.pt", one_tensor(6, 0, {2, 3}, {3, 1}));
    tensor = TorchCheckpoint::open(path).tensor("w");
    std::filesystem::remove(path);
  }
  EXPECT_EQ(values_of(std::as_const(tensor).view()), (std::vector<double>{0, 1, 2, 3, 4, 5}));
}

TEST(TorchCheckpoint, FivePlacesAreTooManyForATensorOnly) {
  const Parsed got(one_tensor(1, 0, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}));
  EXPECT_EQ(got.file.tensors()[0].dims.size(), 5u);
  EXPECT_EQ(got.file.content("w").nbytes(), 4);
  expect_model_error("E-TENSOR-RANK", "\"w\"", [&] { got.file.tensor("w"); });
}

}  // namespace
}  // namespace scgraft
