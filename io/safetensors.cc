// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "io/json.h"
#include "io/limits.h"
#include "io/mapped_file.h"
#include "io/text.h"

namespace scgraft {
namespace {

using nlohmann::json;

struct FileType {
  const char* name;
  int bits;
  std::optional<DType> dtype;
};

// In the order in which the reference implementation lists them: its writer sorts by it.
const FileType kFileTypes[] = {
    {"BOOL", 8, DType::boolean},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, DType::u8},
    {"I8", 8, DType::i8},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, DType::i16},
    {"U16", 16, std::nullopt},
    {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16},
    {"I32", 32, DType::i32},
    {"U32", 32, std::nullopt},
    {"F32", 32, DType::f32},
    {"C64", 64, std::nullopt},
    {"F64", 64, DType::f64},
    {"I64", 64, DType::i64},
    {"U64", 64, std::nullopt},
};

const FileType* file_type(std::string_view name) {
  for (const FileType& type : kFileTypes)
    if (name == type.name) return &type;
  return nullptr;
}

// Position in kFileTypes.
size_t rank_of(DType dtype) {
  size_t i = 0;
  while (kFileTypes[i].dtype != dtype) ++i;
  return i;
}

struct Entry {
  TensorInfo info;
  int64_t begin = 0;
  int64_t end = 0;
};

// The rules for one file, with its name for messages.
class HeaderReader {
 public:
  HeaderReader(const std::string& file, int64_t body) : file_(file), body_(body) {}

  [[noreturn]] void fail(const std::string& message, const std::string& code,
                         const std::string& object = {}) const {
    throw_file_error(FileKind::model, file_, message, code,
                     "the file may be damaged or cut; fetch it again", escaped(object));
  }
  [[noreturn]] void fail_entry(const std::string& name, const std::string& message) const {
    fail(cat("tensor \"", escaped(name), "\" ", message), "E-ST-ENTRY", name);
  }

  std::map<std::string, std::string> metadata(const json& value) const {
    if (!value.is_object()) fail("__metadata__ of the header is not an object", "E-ST-HEADER");
    std::map<std::string, std::string> out;
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string())
        fail(cat("__metadata__ entry \"", escaped(key), "\" is not a string"), "E-ST-HEADER", key);
      out[key] = text.get<std::string>();
    }
    return out;
  }

  Entry entry(const std::string& name, const json& value) const {
    if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
        !value.contains("shape") || !value.contains("data_offsets"))
      fail_entry(name, "needs exactly the fields dtype, shape and data_offsets");
    const json& dtype = value["dtype"];
    const json& shape = value["shape"];
    const json& offsets = value["data_offsets"];
    if (!dtype.is_string()) fail_entry(name, "has a dtype that is not a string");
    const FileType* type = file_type(dtype.get_ref<const std::string&>());
    if (type == nullptr) fail_entry(name, cat("has the unknown dtype ", escaped(dtype.dump())));
    if (!shape.is_array()) fail_entry(name, "has a shape that is not a list");
    if (static_cast<int64_t>(shape.size()) > limits::kTensorRank)
      fail_entry(name,
                 cat("has ", shape.size(), " dimensions, the limit is ", limits::kTensorRank));
    if (!offsets.is_array() || offsets.size() != 2)
      fail_entry(name, "has data_offsets that are not a pair");

    Entry out;
    out.info = {name, type->name, type->dtype, {}};
    int64_t bits = type->bits;
    for (const json& dim : shape) {
      out.info.dims.push_back(size(name, "shape", dim));
      if (__builtin_mul_overflow(bits, out.info.dims.back(), &bits))
        fail_entry(name, cat("of shape ", escaped(shape.dump()),
                             " has more elements than 64 bits can count"));
    }
    out.begin = size(name, "data_offsets", offsets[0]);
    out.end = size(name, "data_offsets", offsets[1]);
    if (out.end < out.begin || out.end > body_)
      fail_entry(name, cat("lies at bytes ", out.begin, " to ", out.end, " of ", body_));
    if (bits % 8 != 0 || bits / 8 != out.end - out.begin)
      fail_entry(name, cat("of shape ", out.info.dims_text(), " and dtype ", type->name, " needs ",
                           (bits + 7) / 8, " bytes, its data_offsets hold ", out.end - out.begin));
    return out;
  }

  // The entries, sorted by offset, must tile the body.
  void check_layout(const std::vector<Entry>& entries) const {
    int64_t at = 0;
    const std::string* before = nullptr;
    for (const Entry& entry : entries) {
      const std::string& name = entry.info.name;
      if (entry.begin < at)
        fail(cat("tensors \"", escaped(*before), "\" and \"", escaped(name), "\" overlap at byte ",
                 entry.begin),
             "E-ST-LAYOUT", name);
      if (entry.begin > at)
        fail(cat("there is a hole of ", entry.begin - at, " bytes before tensor \"", escaped(name),
                 "\""),
             "E-ST-LAYOUT", name);
      at = entry.end;
      before = &name;
    }
    if (at != body_)
      fail(cat("the tensors end at byte ", at, " of ", body_, ", the rest belongs to none"),
           "E-ST-LAYOUT");
  }

 private:
  int64_t size(const std::string& name, const char* what, const json& value) const {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail_entry(name, cat("has ", what, " with ", escaped(value.dump()),
                           ", which is no size between 0 and 2^63-1"));
    return value.get<int64_t>();
  }

  const std::string& file_;
  int64_t body_;
};

}  // namespace

Safetensors Safetensors::open(const std::string& path) {
  auto file = MappedFile::open(path, FileKind::model);
  return parse(file->bytes(), path, file);
}

Safetensors Safetensors::parse(std::span<const std::byte> bytes, const std::string& file,
                               std::shared_ptr<const void> owner) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  const HeaderReader reader(file, 0);
  if (size < 8)
    reader.fail(cat("has ", size, " bytes; the length of a safetensors header alone needs 8"),
                "E-ST-HEADER");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > static_cast<uint64_t>(limits::kSafetensorsHeaderBytes))
    reader.fail(cat("claims a header of ", length, " bytes, the limit is ",
                    limits::kSafetensorsHeaderBytes, "; this may be no safetensors file"),
                "E-ST-HEADER");
  if (length > static_cast<uint64_t>(size - 8))
    reader.fail(cat("claims a header of ", length, " bytes, only ", size - 8, " follow"),
                "E-ST-HEADER");
  const auto header = bytes.subspan(8, length);
  const auto body = bytes.subspan(8 + length);
  if (header.empty() || header[0] != std::byte{'{'})
    reader.fail("the header does not start with '{'", "E-ST-HEADER");
  const json table = parse_json(header, file, FileKind::model,
                                {.bytes = limits::kSafetensorsHeaderBytes, .depth = 4});

  Safetensors out;
  out.file_ = file;
  out.owner_ = std::move(owner);
  const HeaderReader checks(file, static_cast<int64_t>(body.size()));
  std::vector<Entry> entries;
  for (const auto& [name, value] : table.items()) {
    if (name == "__metadata__")
      out.metadata_ = checks.metadata(value);
    else
      entries.push_back(checks.entry(name, value));
  }
  if (static_cast<int64_t>(entries.size()) > limits::kTensorsPerFile)
    checks.fail(cat("holds ", entries.size(), " tensors, the limit is ", limits::kTensorsPerFile),
                "E-LIMIT");
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.info.name) < std::tie(b.begin, b.end, b.info.name);
  });
  checks.check_layout(entries);
  for (Entry& entry : entries) {
    out.index_.emplace(entry.info.name, out.tensors_.size());
    out.data_.push_back(body.subspan(static_cast<size_t>(entry.begin),
                                     static_cast<size_t>(entry.end - entry.begin)));
    out.tensors_.push_back(std::move(entry.info));
  }
  return out;
}

const TensorInfo* Safetensors::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& Safetensors::at(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr)
    throw_file_error(FileKind::model, file_,
                     cat("has no tensor \"", escaped(name), "\" among its ", tensors_.size()),
                     "E-TENSOR-MISSING", "", escaped(name));
  return *info;
}

std::span<const std::byte> Safetensors::bytes(std::string_view name) const {
  return data_[static_cast<size_t>(&at(name) - tensors_.data())];
}

Tensor Safetensors::tensor(std::string_view name) const {
  const TensorInfo& info = at(name);
  return tensor_over(owner_, bytes(name), shape_of(info, FileKind::model, file_), *info.dtype);
}

void write_safetensors(const std::string& path, std::vector<NamedTensor> tensors,
                       std::map<std::string, std::string> metadata, Overwrite overwrite) {
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    const size_t left = rank_of(a.tensor.dtype());
    const size_t right = rank_of(b.tensor.dtype());
    return left != right ? left > right : a.name < b.name;
  });
  metadata.try_emplace("format", "pt");
  std::string text = "{\"__metadata__\":" + json(metadata).dump();
  int64_t at = 0;
  std::set<std::string_view> names = {"__metadata__"};
  for (const auto& [name, tensor] : tensors) {
    require(names.insert(name).second, "the tensor name ", escaped(name), " is taken");
    require(tensor.device() == Device::cpu(), "tensor ", escaped(name), " is not on the CPU");
    const json shape(
        std::vector<int64_t>(tensor.shape().dims().begin(), tensor.shape().dims().end()));
    text += cat(",", json(name).dump(), ":{\"dtype\":\"", kFileTypes[rank_of(tensor.dtype())].name,
                "\",\"shape\":", shape.dump(), ",\"data_offsets\":[", at, ",", at + tensor.nbytes(),
                "]}");
    at += tensor.nbytes();
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();

  OutputFile out(path, overwrite);
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(text);
  for (const NamedTensor& named : tensors)
    out.write(std::span(static_cast<const std::byte*>(named.tensor.data()),
                        static_cast<size_t>(named.tensor.nbytes())));
  out.commit();
}

}  // namespace scgraft
