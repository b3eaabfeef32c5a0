// SPDX-License-Identifier: Apache-2.0
#include "io/npz.h"

#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

std::string npy(const std::string& header, const std::string& elements) {
  return "\x93NUMPY" + std::string("\x01\x00", 2) +
         le<uint16_t>(static_cast<uint16_t>(header.size())) + header + elements;
}

std::string dict(const std::string& descr, const std::string& order, const std::string& shape) {
  return cat("{'descr': ", descr, ", 'fortran_order': ", order, ", 'shape': ", shape, ", }\n");
}

TEST(Npz, ReadsEveryTypeStoredOrDeflated) {
  TemporaryFolder folder;
  const std::vector<ArchiveEntry> entries = {
      {"f4.npy", npy(dict("'<f4'", "False", "(3,)"), packed<float>({1, -2, 0.5}))},
      {"f8.npy", npy(dict("'<f8'", "False", "(1, 3)"), packed<double>({1, -2, 0.1})), true},
      {"f2.npy", npy(dict("'<f2'", "False", "(2,)"), packed<uint16_t>({0x3c00, 0xc000}))},
      {"i8.npy", npy(dict("'<i8'", "False", "()"), packed<int64_t>({-7}))},
      {"i4.npy", npy(dict("'<i4'", "False", "(2L,)"), packed<int32_t>({5, -6}))},
      {"i2.npy", npy(dict("'<i2'", "False", "(2,)"), packed<int16_t>({300, -300})), true},
      {"i1.npy", npy(dict("'|i1'", "False", "(2,)"), packed<int8_t>({5, -6}))},
      {"u1.npy", npy(dict("\"|u1\"", "False", "(2,)"), packed<uint8_t>({5, 250}))},
      {"b1.npy", npy(dict("'|b1'", "False", "(2,)"), packed<uint8_t>({0, 1}))},
      {"empty.npy", npy(dict("'<f4'", "False", "(0, 3)"), "")},
  };
  const auto arrays = read_npz(put(folder / "a.npz", zip_of(entries)));
  ASSERT_EQ(arrays.size(), entries.size());
  const auto values = [&](const char* name) { return values_of(arrays.at(name).view()); };
  using Values = std::vector<double>;
  EXPECT_EQ(values("f4"), (Values{1, -2, 0.5}));
  EXPECT_EQ(values("f8"), (Values{1, -2, 0.1}));
  EXPECT_EQ(arrays.at("f8").shape(), (Shape{1, 3}));
  EXPECT_EQ(arrays.at("f2").dtype(), DType::f16);
  EXPECT_EQ(values_of(arrays.at("f2").converted(DType::f32).view()), (Values{1, -2}));
  EXPECT_EQ(arrays.at("i8").rank(), 0);
  EXPECT_EQ(values("i8"), (Values{-7}));
  EXPECT_EQ(values("i4"), (Values{5, -6}));
  EXPECT_EQ(arrays.at("i2").as<int16_t>()[1], -300);
  EXPECT_EQ(arrays.at("i1").as<int8_t>()[1], -6);
  EXPECT_EQ(arrays.at("u1").as<uint8_t>()[1], 250);
  EXPECT_EQ(arrays.at("b1").dtype(), DType::boolean);
  EXPECT_TRUE(arrays.at("b1").as<bool>()[1]);
  EXPECT_EQ(arrays.at("empty").shape(), (Shape{0, 3}));
}

TEST(Npz, TurnsColumnMajorIntoRowMajor) {
  TemporaryFolder folder;
  // a[i][j] = 10 i + j and b[i][j][k] = 100 i + 10 j + k, first index fastest in the file.
  std::vector<float> a, b;
  for (int j = 0; j < 3; ++j)
    for (int i = 0; i < 2; ++i) a.push_back(static_cast<float>(10 * i + j));
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i) b.push_back(static_cast<float>(100 * i + 10 * j + k));
  const auto arrays = read_npz(put(
      folder / "a.npz", zip_of({{"a.npy", npy(dict("'<f4'", "True", "(2, 3)"), packed(a))},
                                {"b.npy", npy(dict("'<f4'", "True", "(2, 3, 4)"), packed(b))}})));
  EXPECT_EQ(values_of(arrays.at("a").view()), (std::vector<double>{0, 1, 2, 10, 11, 12}));
  const auto c = arrays.at("b").as<float, 3>();
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k)
        EXPECT_EQ(c(i, j, k), static_cast<float>(100 * i + 10 * j + k)) << i << j << k;
}

TEST(Npz, ReadsOneArrayPerFileAndLongHeaders) {
  TemporaryFolder folder;
  const std::string header = dict("'<f4'", "False", "(1,)");
  const std::string two = "\x93NUMPY" + std::string("\x02\x00", 2) +
                          le<uint32_t>(static_cast<uint32_t>(header.size())) + header +
                          packed<float>({4});
  EXPECT_EQ(values_of(read_npy(put(folder / "a.npy", two)).view()), std::vector<double>{4});
}

struct Bad {
  std::string name, bytes, part;
};

std::vector<Bad> bad_arrays() {
  const std::string two = packed<float>({1, 2});
  return {
      {"magic", "\x93NUMPX" + std::string(20, '\0'), "is no array"},
      {"version", "\x93NUMPY" + std::string("\x04\x00", 2) + std::string(20, ' '),
       "header version 4"},
      {"table", npy(dict("[('a', '<f4')]", "False", "(2,)"), two), "several columns"},
      {"text", npy(dict("'<U3'", "False", "(2,)"), two), "\"<U3\""},
      {"object", npy(dict("'|O'", "False", "(2,)"), two), "\"|O\""},
      {"complex", npy(dict("'<c8'", "False", "(1,)"), two), "\"<c8\""},
      {"unsigned", npy(dict("'<u4'", "False", "(2,)"), two), "\"<u4\""},
      {"big_endian", npy(dict("'>f4'", "False", "(2,)"), two), "big-endian"},
      {"rank", npy(dict("'<f4'", "False", "(1, 1, 1, 1, 2)"), two), "5 dimensions"},
      {"too_few", npy(dict("'<f4'", "False", "(3,)"), two), "needs 12 bytes, 8 are there"},
      {"too_many", npy(dict("'<f4'", "False", "(1,)"), two), "needs 4 bytes, 8 are there"},
      {"overflow", npy(dict("'<f4'", "False", "(4611686018427387904, 4)"), two), "too many"},
      {"huge_number", npy(dict("'<f4'", "False", "(99999999999999999999,)"), two),
       "cannot be read"},
      {"negative", npy(dict("'<f4'", "False", "(-2,)"), two), "cannot be read"},
      {"number", npy(dict("'<f4'", "False", "(2)"), two), "cannot be read"},
      {"order", npy(dict("'<f4'", "Maybe", "(2,)"), two), "cannot be read"},
      {"key", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", two),
       "cannot be read"},
      {"missing_key", npy("{'descr': '<f4', 'shape': (2,)}", two), "cannot be read"},
      {"twice", npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", two),
       "cannot be read"},
      {"more", npy(dict("'<f4'", "False", "(2,)") + "__import__('os')", two), "cannot be read"},
      {"boolean", npy(dict("'|b1'", "False", "(2,)"), "\x01\x02"), "neither 0 nor 1"},
      {"control", npy("{'\x1b[2J'", two), "cannot be read"},
  };
}

TEST(Npz, NamesTheArrayThatIsNoArray) {
  TemporaryFolder folder;
  for (const Bad& bad : bad_arrays()) {
    SCOPED_TRACE(bad.name);
    const std::string path = put(folder / "a.npz", zip_of({{"the array.npy", bad.bytes}}));
    const auto read = [&] { read_npz(path); };
    expect_file_error(ExitCode::data, "E-NPY", bad.part, read);
    expect_file_error(ExitCode::data, "E-NPY", "\"the array\"", read);
  }
}

TEST(Npz, RefusesCutHeadersAndOtherEntries) {
  TemporaryFolder folder;
  const std::string good = npy(dict("'<f4'", "False", "(2,)"), packed<float>({1, 2}));
  for (size_t length = 0; length < good.size(); ++length) {
    const std::string path = put(folder / "a.npy", good.substr(0, length));
    EXPECT_THROW(read_npy(path), DataError) << length;
  }
  expect_file_error(ExitCode::data, "E-NPY", "\"readme.txt\"", [&] {
    read_npz(put(folder / "a.npz", zip_of({{"readme.txt", "hello"}})));
  });
  expect_file_error(ExitCode::data, "E-FILE-MISSING", "no such file",
                    [&] { read_npz(folder / "none.npz"); });
}

TEST(Npz, RoundTripKeepsEveryBit) {
  TemporaryFolder folder;
  std::map<std::string, Tensor> arrays;
  arrays["x/with space"] = tensor_of({2, 3}, DType::f32, {1, 2, 3, -4, 0.1, 1e-40});
  arrays["wide"] = tensor_of({2, 1, 2, 1}, DType::f64, {1e300, -0.0, 3, 4});
  arrays["scalar"] = Tensor({}, DType::i64);
  arrays["scalar"].as<int64_t>()[0] = -5;
  arrays["none"] = Tensor({0, 7}, DType::i32);
  arrays["\xc3\xa9"] = Tensor({3}, DType::boolean);
  arrays["\xc3\xa9"].as<bool>()[1] = true;
  std::map<std::string, ConstTensorView> views;
  for (const auto& [name, tensor] : arrays) views[name] = tensor.view();
  write_npz(folder / "a.npz", views, Overwrite::refuse);
  const auto back = read_npz(folder / "a.npz");
  ASSERT_EQ(back.size(), arrays.size());
  for (const auto& [name, tensor] : arrays) {
    SCOPED_TRACE(name);
    expect_same_bits(back.at(name).view(), tensor.view());
  }
  write_npz(folder / "b.npz", views, Overwrite::refuse);
  EXPECT_EQ(read_text(folder / "a.npz"), read_text(folder / "b.npz"));
  EXPECT_THROW(write_npz(folder / "a.npz", views, Overwrite::refuse), ConfigError);
}

TEST(Npz, WritesBf16AsF32) {
  TemporaryFolder folder;
  const Tensor x = tensor_of({2}, DType::bf16, {1.5, -3});
  write_npz(folder / "a.npz", {{"x", x.view()}}, Overwrite::refuse);
  const auto back = read_npz(folder / "a.npz");
  EXPECT_EQ(back.at("x").dtype(), DType::f32);
  EXPECT_EQ(values_of(back.at("x").view()), (std::vector<double>{1.5, -3}));
}

TEST(Npz, ReadsTheRecordedCases) {
  SCGRAFT_NEEDS_SHARED("golden/scgpt_base/arrays.npz");
  const auto arrays = read_npz(shared_path("golden/scgpt_base/arrays.npz"));
  EXPECT_EQ(arrays.at("transformer_output").shape(), (Shape{4, 20, 32}));
  EXPECT_EQ(arrays.at("src").dtype(), DType::i64);
  EXPECT_EQ(arrays.at("src_key_padding_mask").dtype(), DType::boolean);
  EXPECT_EQ(arrays.at("loss_cls").rank(), 0);
  EXPECT_EQ(read_npz(shared_path("golden/scgpt_base/grads_cls.npz")).size(), 43u);
}

}  // namespace
}  // namespace scgraft
