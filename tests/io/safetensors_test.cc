// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include "io/mapped_file.h"
#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

std::string file_of(const std::string& header, const std::string& body = "") {
  return le<uint64_t>(header.size()) + header + body;
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  int64_t begin, int64_t end) {
  return cat('"', name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":[",
             begin, ",", end, "]}");
}

Safetensors parse(const std::string& bytes) { return Safetensors::parse(bytes_of(bytes), "t.st"); }

TEST(Safetensors, ReadsEveryKindOfTensor) {
  const std::string header =
      cat("{", entry("z", "BF16", "[2]", 16, 20), ",", entry("a", "F32", "[2,2]", 0, 16), ",",
          entry("none", "F32", "[0,3]", 20, 20), ",", entry("one", "I64", "[]", 20, 28),
          ",\"__metadata__\":{\"format\":\"pt\"}}   ");
  const std::string bytes =
      file_of(header, packed<float>({1, 2, 3, 4}) + packed<uint16_t>({0x3f80, 0x4000}) +
                          packed<int64_t>({-7}));
  const Safetensors file = parse(bytes);
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "a");  // in order of the bytes
  EXPECT_EQ(values_of(file.tensor("a").view()), (std::vector<double>{1, 2, 3, 4}));
  EXPECT_EQ(file.tensor("a").shape(), (Shape{2, 2}));
  EXPECT_EQ(values_of(file.tensor("z").view()), (std::vector<double>{1, 2}));
  EXPECT_EQ(file.tensor("z").dtype(), DType::bf16);
  EXPECT_EQ(file.tensor("none").numel(), 0);
  EXPECT_EQ(file.tensor("one").rank(), 0);
  EXPECT_EQ(values_of(file.tensor("one").view()), (std::vector<double>{-7}));
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

// A tensor without elements may begin anywhere: nothing is copied, not even no bytes from null.
TEST(Safetensors, ReadsAnEmptyTensorAtAnOddPlace) {
  const std::string header =
      cat("{", entry("a", "U8", "[1]", 0, 1), ",", entry("none", "F32", "[0,3]", 1, 1), "}");
  const Safetensors file = parse(file_of(header, "x"));
  EXPECT_EQ(file.tensor("none").shape(), (Shape{0, 3}));
  EXPECT_EQ(file.tensor("none").numel(), 0);
}

struct Violation {
  std::string name;
  std::string bytes;
  std::string code;
  std::string part;
};

std::vector<Violation> violations() {
  const std::string eight(8, '\0');
  const auto one = [&](const std::string& text, const std::string& body) {
    return file_of("{" + text + "}", body);
  };
  const std::string good = entry("a", "F32", "[2]", 0, 8);
  return {
      {"seven_bytes", "1234567", "E-ST-HEADER", "has 7 bytes"},
      {"header_longer_than_limit", le<uint64_t>(1ull << 60) + "{}", "E-ST-HEADER", "header of"},
      {"header_length_wraps", le<uint64_t>(~0ull) + "{}", "E-ST-HEADER", "header of"},
      {"header_longer_than_file", le<uint64_t>(100) + "{}", "E-ST-HEADER", "only 2 follow"},
      {"header_empty", le<uint64_t>(0), "E-ST-HEADER", "'{'"},
      {"header_starts_with_space", file_of(" {}"), "E-ST-HEADER", "'{'"},
      {"not_json", file_of("{not json"), "E-JSON", "JSON"},
      {"not_utf8", file_of("{\"\xff\":1}"), "E-JSON", "JSON"},
      {"text_behind", file_of("{}x"), "E-JSON", "JSON"},
      {"nul_behind", file_of(std::string("{}\0", 3)), "E-JSON", "JSON"},
      {"deep", file_of("{\"a\":[[[[[[1]]]]]]}"), "E-LIMIT", "deeper"},
      {"key_twice", one(good + "," + good, eight), "E-JSON-DUPLICATE", "\"a\" twice"},
      {"field_twice", one("\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}", eight), "E-JSON-DUPLICATE",
       "dtype"},
      {"metadata_no_object", one("\"__metadata__\":[]", ""), "E-ST-HEADER", "__metadata__"},
      {"metadata_number", one("\"__metadata__\":{\"n\":1}", ""), "E-ST-HEADER", "not a string"},
      {"entry_no_object", one("\"a\":1", ""), "E-ST-ENTRY", "\"a\" needs exactly"},
      {"field_missing", one("\"a\":{\"dtype\":\"F32\",\"shape\":[]}", ""), "E-ST-ENTRY",
       "data_offsets"},
      {"unknown_dtype", one(entry("a", "F33", "[2]", 0, 8), eight), "E-ST-ENTRY", "F33"},
      {"dtype_no_text", one("\"a\":{\"dtype\":3,\"shape\":[],\"data_offsets\":[0,4]}", eight),
       "E-ST-ENTRY", "dtype"},
      {"shape_negative", one(entry("a", "F32", "[-2]", 0, 8), eight), "E-ST-ENTRY", "-2"},
      {"shape_fraction", one(entry("a", "F32", "[2.0]", 0, 8), eight), "E-ST-ENTRY", "2.0"},
      {"shape_no_list", one(entry("a", "F32", "2", 0, 8), eight), "E-ST-ENTRY", "list"},
      {"shape_overflow", one(entry("a", "F32", "[1099511627776,1099511627776]", 0, 8), eight),
       "E-ST-ENTRY", "64 bits"},
      {"shape_above_int64", one(entry("a", "U8", "[18446744073709551615]", 0, 8), eight),
       "E-ST-ENTRY", "no size"},
      {"rank_9", one(entry("a", "U8", "[8,1,1,1,1,1,1,1,1]", 0, 8), eight), "E-ST-ENTRY",
       "9 dimensions"},
      {"wrong_size", one(entry("a", "F32", "[3]", 0, 8), eight), "E-ST-ENTRY", "needs 12 bytes"},
      {"half_byte", one(entry("a", "F4", "[3]", 0, 1), "x"), "E-ST-ENTRY", "F4"},
      {"end_before_begin", one(entry("a", "F32", "[2]", 8, 0), eight), "E-ST-ENTRY", "8 to 0"},
      {"beyond_file", one(entry("a", "F32", "[4]", 0, 16), eight), "E-ST-ENTRY", "of 8"},
      {"offsets_no_pair",
       one("\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}", eight), "E-ST-ENTRY",
       "pair"},
      {"overlap", one(good + "," + entry("b", "F32", "[2]", 4, 12), eight + "1234"), "E-ST-LAYOUT",
       "overlap"},
      {"same_bytes", one(good + "," + entry("b", "F32", "[2]", 0, 8), eight), "E-ST-LAYOUT",
       "overlap"},
      {"hole_before", one(entry("a", "F32", "[1]", 4, 8), eight), "E-ST-LAYOUT", "hole"},
      {"hole_between",
       one(entry("a", "U8", "[2]", 0, 2) + "," + entry("b", "U8", "[4]", 4, 8), eight),
       "E-ST-LAYOUT", "hole of 2 bytes"},
      {"bytes_behind", one(good, eight + "x"), "E-ST-LAYOUT", "end at byte 8 of 9"},
      {"body_without_tensor", file_of("{}", "x"), "E-ST-LAYOUT", "belongs to none"},
      {"escape_in_name", one(entry("\\u001b[31m", "F32", "[3]", 0, 8), eight), "E-ST-ENTRY",
       "\\x1b[31m"},
  };
}

class SafetensorsViolation : public ::testing::TestWithParam<Violation> {};
INSTANTIATE_TEST_SUITE_P(All, SafetensorsViolation, ::testing::ValuesIn(violations()),
                         [](const auto& test) { return test.param.name; });

TEST_P(SafetensorsViolation, IsRefused) {
  const Violation& v = GetParam();
  expect_model_error(v.code, v.part, [&] { parse(v.bytes); });
  expect_model_error(v.code, "t.st", [&] { parse(v.bytes); });
}

// A file that is cut anywhere is never accepted.
TEST(Safetensors, EveryPrefixIsRefused) {
  const std::string bytes = file_of("{" + entry("a", "F32", "[2]", 0, 8) + "}", "12345678");
  parse(bytes);
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_THROW(parse(bytes.substr(0, size)), ModelError) << size;
}

TEST(Safetensors, TypesAndRanksItCannotHoldFailOnlyWhenAskedFor) {
  const std::string bytes = file_of(
      cat("{", entry("f8", "F8_E4M3", "[4]", 0, 4), ",", entry("five", "U8", "[1,1,2,1,2]", 4, 8),
          ",", entry("fine", "U8", "[1]", 8, 9), "}"),
      "123456789");
  const Safetensors file = parse(bytes);
  EXPECT_EQ(file.tensors()[1].dims, (std::vector<int64_t>{1, 1, 2, 1, 2}));
  EXPECT_EQ(file.tensor("fine").numel(), 1);
  expect_model_error("E-TENSOR-DTYPE", "F8_E4M3", [&] { file.tensor("f8"); });
  expect_model_error("E-TENSOR-RANK", "[1, 1, 2, 1, 2]", [&] { file.tensor("five"); });
  expect_model_error("E-TENSOR-MISSING", "\"no\\n\"", [&] { file.tensor("no\n"); });
}

// The buffer of a file whose header is not padded is not aligned; the tensor is.
TEST(Safetensors, UnalignedTensorsAreCopied) {
  for (int pad = 0; pad < 8; ++pad) {
    const std::string header =
        "{" + entry("a", "F64", "[2]", 0, 16) + "}" + std::string(static_cast<size_t>(pad), ' ');
    const std::string bytes = file_of(header, packed<double>({1.5, -2}));
    const Tensor tensor = parse(bytes).tensor("a");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view().data()) % 8, 0u);
    EXPECT_EQ(values_of(tensor.view()), (std::vector<double>{1.5, -2}));
  }
}

TEST(SafetensorsWriter, WritesTheCanonicalBytes) {
  TemporaryFolder folder;
  const std::vector<float> f = {1, 2};
  const std::vector<int64_t> l = {3};
  const std::vector<uint8_t> u = {4};
  write_safetensors(folder / "a.safetensors",
                    {{"u", view_of(u.data(), {1})},
                     {"b", view_of(f.data(), {2, 1})},
                     {"a", view_of(f.data(), {2})},
                     {"long", view_of(l.data(), {})}},
                    {}, Overwrite::refuse);
  const std::string header =
      cat("{\"__metadata__\":{\"format\":\"pt\"},", entry("long", "I64", "[]", 0, 8), ",",
          entry("a", "F32", "[2]", 8, 16), ",", entry("b", "F32", "[2,1]", 16, 24), ",",
          entry("u", "U8", "[1]", 24, 25), "}");
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  EXPECT_TRUE(read_text(folder / "a.safetensors") ==
              file_of(padded, packed(l) + packed(f) + packed(f) + packed(u)));
}

TEST(SafetensorsWriter, RoundTripKeepsEveryTypeAndValue) {
  TemporaryFolder folder;
  std::vector<Tensor> tensors;
  std::vector<NamedTensor> named;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i64, DType::i32,
                            DType::i16, DType::i8, DType::u8, DType::boolean}) {
    tensors.emplace_back(Shape{3, 5}, dtype);
    auto* data = static_cast<unsigned char*>(tensors.back().view().data());
    for (int64_t i = 0; i < tensors.back().nbytes(); ++i)
      data[i] = static_cast<unsigned char>(dtype == DType::boolean ? i % 2 : i * 37);
  }
  tensors.emplace_back(Shape{0, 4}, DType::f32);
  for (size_t i = 0; i < tensors.size(); ++i)
    named.push_back({cat("tensor.", i, " \xc3\xa9 \"quoted\""), tensors[i].view()});
  const std::string path = folder / "all.safetensors";
  write_safetensors(path, named, {{"rank", "8"}}, Overwrite::refuse);
  const Safetensors file = Safetensors::open(path);
  EXPECT_EQ(file.tensors().size(), named.size());
  for (const NamedTensor& n : named) expect_same_bits(file.tensor(n.name).view(), n.tensor);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"rank", "8"}}));
  EXPECT_TRUE(file.tensor(named[0].name).is_shared());
}

TEST(SafetensorsWriter, RefusesANameThatIsTaken) {
  TemporaryFolder folder;
  const float x = 0;
  const uint8_t y = 0;
  expect_error("is taken", [&] {
    write_safetensors(folder / "a", {{"x", view_of(&x, {})}, {"x", view_of(&y, {})}}, {},
                      Overwrite::refuse);
  });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

std::string rewrite(const std::string& from, const std::string& to) {
  const Safetensors file = Safetensors::open(from);
  std::vector<Tensor> tensors;
  std::vector<NamedTensor> named;
  tensors.reserve(file.tensors().size());
  for (const TensorInfo& info : file.tensors()) {
    tensors.push_back(file.tensor(info.name));
    named.push_back({info.name, tensors.back().view()});
  }
  write_safetensors(to, named, file.metadata(), Overwrite::refuse);
  return read_text(to);
}

// Another program's order and spacing end in the one canonical form, with the same tensors.
TEST(SafetensorsWriter, CanonicalFormIsAFixedPoint) {
  for (const char* name : {"geneformer_mlm", "geneformer_seqcls", "geneformer_tokencls",
                           "geneformer_v2_special_mlm"}) {
    const std::string relative = cat("golden/", name, "/model.safetensors");
    SCGRAFT_NEEDS_SHARED(relative);
    TemporaryFolder folder;
    const std::string once = rewrite(shared_path(relative), folder / "once");
    const std::string twice = rewrite(folder / "once", folder / "twice");
    EXPECT_TRUE(once == twice) << name;
    const Safetensors before = Safetensors::open(shared_path(relative));
    const Safetensors after = Safetensors::open(folder / "once");
    ASSERT_GT(before.tensors().size(), 10u);
    EXPECT_EQ(before.tensors().size(), after.tensors().size());
    for (const TensorInfo& info : before.tensors())
      expect_same_bits(after.tensor(info.name).view(), before.tensor(info.name).view());
  }
}

TEST(MappedFile, SaysWhatIsWrongWithThePath) {
  TemporaryFolder folder;
  expect_model_error("E-FILE-MISSING", "no.safetensors: there is no such file",
                     [&] { Safetensors::open(folder / "no.safetensors"); });
  expect_model_error("E-FILE-TYPE", "is a folder", [&] { Safetensors::open(folder.path()); });
  expect_file_error(ExitCode::data, "E-FILE-MISSING", "no.h5ad",
                    [&] { MappedFile::open(folder / "no.h5ad", FileKind::data); });
  EXPECT_EQ(MappedFile::open(put(folder / "empty", ""), FileKind::data)->size(), 0);
}

TEST(MappedFile, TensorsOutliveTheReaderAndTheName) {
  TemporaryFolder folder;
  const std::vector<float> values = {1, 2, 3};
  const std::string path = folder / "a.safetensors";
  write_safetensors(path, {{"x", view_of(values.data(), {3})}}, {}, Overwrite::refuse);
  const Tensor tensor = Safetensors::open(path).tensor("x");
  std::filesystem::remove(path);
  EXPECT_EQ(values_of(tensor.view()), (std::vector<double>{1, 2, 3}));
}

TEST(MappedFile, PagesComeBackAfterTheyWereGivenAway) {
  TemporaryFolder folder;
  std::string text(3 << 16, 'x');
  text.back() = 'y';
  const auto file = MappedFile::open(put(folder / "a", text), FileKind::data);
  file->advise_dont_need(file->bytes());
  file->advise_dont_need(file->bytes().subspan(5, 10));
  EXPECT_EQ(static_cast<char>(file->bytes()[0]), 'x');
  EXPECT_EQ(static_cast<char>(file->bytes().back()), 'y');
}

}  // namespace
}  // namespace scgraft
