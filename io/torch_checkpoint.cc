// SPDX-License-Identifier: Apache-2.0
#include "io/torch_checkpoint.h"

#include <cstring>
#include <optional>

#include "io/limits.h"
#include "io/mapped_file.h"
#include "io/text.h"
#include "io/torch_storages.h"

namespace scgraft {
namespace {

// True when the strides are those of a row-major tensor; an axis of one element has any stride.
bool is_row_major(const std::vector<int64_t>& dims, const std::vector<int64_t>& strides) {
  int64_t want = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    if (dims[i] != 1 && strides[i] != want) return false;
    want *= dims[i];
  }
  return true;
}

// Copies a strided tensor of elements of `size` bytes into row-major order.
void gather(const std::vector<int64_t>& dims, const std::vector<int64_t>& strides, int64_t numel,
            int64_t size, const std::byte* from, std::byte* to) {
  std::vector<int64_t> index(dims.size(), 0);
  for (int64_t i = 0; i < numel; ++i) {
    std::memcpy(to + i * size, from, static_cast<size_t>(size));
    // To the next element: the last axis counts up, a full one starts over and carries.
    for (size_t axis = dims.size(); axis-- > 0;) {
      from += strides[axis] * size;
      if (++index[axis] < dims[axis]) break;
      from -= strides[axis] * size * dims[axis];
      index[axis] = 0;
    }
  }
}

}  // namespace

// Turns the nodes of a pickle into tensors and plain values.
class TorchReader {
 public:
  TorchReader(const TorchStorages& storages, const std::string& file)
      : file_(file), storages_(storages), pickle_(storages.pickle()) {}

  TorchCheckpoint read() {
    out_.values_ = walk(pickle_.root(), "", 0).value_or(nullptr);
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(const std::string& message, const std::string& object = {}) const {
    throw_file_error(FileKind::model, file_, message, "E-TORCH",
                     "the file may be damaged, or not a file of weights", escaped(object));
  }

  // Collects the tensors below a node; its plain value, if it is one.
  std::optional<nlohmann::json> walk(PickleId id, const std::string& path, int depth) {
    if (depth > limits::kPickleDepth)
      fail(cat("nests objects deeper than ", limits::kPickleDepth, " levels"), path);
    // Shared objects are visited once for every way that leads to them.
    if (++visits_ > limits::kPickleObjects) fail("holds too many references to shared objects");
    const PickleNode& node = pickle_[id];
    switch (node.kind) {
      case PickleKind::none:
        return nullptr;
      case PickleKind::boolean:
        return node.integer != 0;
      case PickleKind::integer:
        return node.integer;
      case PickleKind::real:
        return node.real;
      case PickleKind::text:
        return node.text;
      case PickleKind::tensor:
        add(node, path.empty() ? "tensor" : path);
        return std::nullopt;
      case PickleKind::list:
      case PickleKind::tuple: {
        nlohmann::json list = nlohmann::json::array();
        for (size_t i = 0; i < node.items.size(); ++i)
          list.push_back(
              walk(node.items[i], below(path, std::to_string(i)), depth + 1).value_or(nullptr));
        return list;
      }
      case PickleKind::dict: {
        nlohmann::json object = nlohmann::json::object();
        for (size_t i = 0; i + 1 < node.items.size(); i += 2) {
          const std::string key = key_text(node.items[i]);
          auto value = walk(node.items[i + 1], below(path, key), depth + 1);
          if (value) object[key] = std::move(*value);
        }
        return object;
      }
      default:
        return std::nullopt;
    }
  }

  static std::string below(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "/" + key;
  }

  std::string key_text(PickleId id) const {
    const PickleNode& key = pickle_[id];
    if (key.kind == PickleKind::text) return std::string(key.text);
    if (key.kind == PickleKind::integer) return std::to_string(key.integer);
    return "?";  // tensors below it are still found, by a path that cannot be typed by mistake
  }

  void add(const PickleNode& node, const std::string& name) {
    const PickleNode& storage = pickle_[node.items[0]];
    const DType dtype = *storage.dtype;
    TensorInfo info{name, std::string(name_of(dtype)), dtype, {}};
    TorchCheckpoint::Place place;
    place.offset = pickle_[node.items[1]].integer;
    for (const PickleId i : pickle_[node.items[2]].items) info.dims.push_back(pickle_[i].integer);
    for (const PickleId i : pickle_[node.items[3]].items)
      place.strides.push_back(pickle_[i].integer);
    place.storage = storages_.bytes(storage, name);
    check_extent(info, place, storage.integer);
    if (static_cast<int64_t>(out_.tensors_.size()) >= limits::kTensorsPerFile)
      fail(cat("holds more than ", limits::kTensorsPerFile, " tensors"));
    if (!out_.index_.emplace(name, out_.tensors_.size()).second)
      fail(cat("holds two tensors \"", escaped(name), "\""), name);
    out_.tensors_.push_back(std::move(info));
    out_.places_.push_back(std::move(place));
  }

  // Every element lies in the storage of `count` elements, and a copy of the tensor is not larger
  // than its storage.
  void check_extent(const TensorInfo& info, const TorchCheckpoint::Place& place,
                    int64_t count) const {
    int64_t numel = 1;
    int64_t last = place.offset;
    bool fits = place.offset >= 0;
    for (size_t i = 0; i < info.dims.size() && fits; ++i) {
      int64_t reach = 0;
      fits = info.dims[i] >= 0 && place.strides[i] >= 0 &&
             !__builtin_mul_overflow(numel, info.dims[i], &numel) &&
             !__builtin_mul_overflow(info.dims[i] - 1, place.strides[i], &reach) &&
             !__builtin_add_overflow(last, reach, &last);
    }
    fits = fits && (numel == 0 || last < count) && numel <= count;
    if (!fits)
      fail(cat("tensor \"", escaped(info.name), "\" of shape ", info.dims_text(), " at element ",
               place.offset, " does not fit its storage of ", count, " elements"),
           info.name);
  }

  const std::string& file_;
  const TorchStorages& storages_;
  const Pickle& pickle_;
  TorchCheckpoint out_;
  int64_t visits_ = 0;
};

TorchCheckpoint TorchCheckpoint::open(const std::string& path) {
  auto file = MappedFile::open(path, FileKind::model);
  return parse(file->bytes(), path, file);
}

TorchCheckpoint TorchCheckpoint::parse(std::span<const std::byte> bytes, const std::string& file,
                                       std::shared_ptr<const void> owner) {
  std::unique_ptr<TorchStorages> storages;
  if (TorchStream::begins(bytes))
    storages = std::make_unique<TorchStream>(bytes, file);
  else
    storages = std::make_unique<TorchZip>(bytes, file);
  TorchCheckpoint out = TorchReader(*storages, file).read();
  out.file_ = file;
  out.owner_ = std::move(owner);
  return out;
}

size_t TorchCheckpoint::at(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    throw_file_error(FileKind::model, file_,
                     cat("has no tensor \"", escaped(name), "\" among its ", tensors_.size()),
                     "E-TENSOR-MISSING", "", escaped(name));
  return found->second;
}

Buffer TorchCheckpoint::content(std::string_view name) const {
  const size_t i = at(name);
  const TensorInfo& info = tensors_[i];
  const Place& place = places_[i];
  const int64_t size = size_of(*info.dtype);
  const int64_t nbytes = info.numel() * size;
  if (nbytes == 0) return Buffer(0);
  const std::byte* first = place.storage.data() + place.offset * size;
  const bool aligned = reinterpret_cast<uintptr_t>(first) % static_cast<uintptr_t>(size) == 0;
  if (aligned && is_row_major(info.dims, place.strides)) return Buffer(owner_, first, nbytes);
  Buffer copy(nbytes);
  gather(info.dims, place.strides, info.numel(), size, first, static_cast<std::byte*>(copy.data()));
  return copy;
}

Tensor TorchCheckpoint::tensor(std::string_view name) const {
  const TensorInfo& info = tensors_[at(name)];
  return Tensor(content(name), shape_of(info, FileKind::model, file_), *info.dtype);
}

}  // namespace scgraft
