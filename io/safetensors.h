// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/output.h"
#include "io/tensor_entry.h"
#include "runtime/tensor.h"

namespace scgraft {

// A safetensors file: u64 header length, JSON header, then the elements of all tensors, row-major
// and little-endian, without holes. The whole header is checked when the file is opened, so that
// every entry lies inside the file; element values are not looked at.
//
// Every violation throws ModelError with one of the codes E-ST-HEADER (length, first byte,
// metadata), E-JSON, E-JSON-DUPLICATE, E-ST-ENTRY (dtype, shape or offsets of one tensor),
// E-ST-LAYOUT (holes, overlaps, bytes at the end), E-LIMIT.
// Source: github.com/huggingface/safetensors, the format section of its README.
class Safetensors {
 public:
  // Maps the file; tensors share the mapping.
  static Safetensors open(const std::string& path);
  // Parses bytes that `owner` keeps alive (null: the caller does).
  //   file  name for messages
  static Safetensors parse(std::span<const std::byte> bytes, const std::string& file,
                           std::shared_ptr<const void> owner = nullptr);

  // In order of their bytes.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // The elements of one tensor as they lie in the file. Throws ModelError (E-TENSOR-MISSING).
  std::span<const std::byte> bytes(std::string_view name) const;
  // A tensor that shares the file's bytes where their alignment allows it. Throws ModelError
  // (E-TENSOR-MISSING, E-TENSOR-DTYPE, E-TENSOR-RANK).
  Tensor tensor(std::string_view name) const;

 private:
  const TensorInfo* find(std::string_view name) const;
  const TensorInfo& at(std::string_view name) const;

  std::string file_;
  std::shared_ptr<const void> owner_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::span<const std::byte>> data_;  // of tensors_[i]
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

// A tensor to be written under a name. The name must be unique in the file.
struct NamedTensor {
  std::string name;
  ConstTensorView tensor;
};

// Writes the canonical form: tensors by descending dtype (f64, i64, f32, i32, bf16, f16, i16, i8,
// u8, bool), then by name; the header in the same order, padded with spaces to a multiple of 8.
// Equal content gives equal bytes. `metadata` gets {"format": "pt"} when it has no such key.
// Throws as OutputFile does.
void write_safetensors(const std::string& path, std::vector<NamedTensor> tensors,
                       std::map<std::string, std::string> metadata, Overwrite overwrite);

}  // namespace scgraft
