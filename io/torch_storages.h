// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "io/pickle.h"
#include "io/zip_directory.h"

namespace scgraft {

// Where a PyTorch file has its pickle and the elements of its storages. Everything is checked that
// can be checked without the pickle's tensors.
class TorchStorages {
 public:
  virtual ~TorchStorages() = default;
  virtual const Pickle& pickle() const = 0;
  // The elements of a storage, as many as the pickle says that it has. Throws ModelError (E-TORCH).
  //   name  of a tensor that lies in it, for messages
  virtual std::span<const std::byte> bytes(const PickleNode& storage,
                                           const std::string& name) const = 0;
};

// torch 1.6 and newer: a zip archive with data.pkl and an entry per storage.
class TorchZip : public TorchStorages {
 public:
  // Throws ModelError: E-ZIP, E-TRUNCATED, E-LIMIT, E-PICKLE, E-PICKLE-GLOBAL, E-TORCH.
  TorchZip(std::span<const std::byte> file_bytes, const std::string& file);
  const Pickle& pickle() const override { return pickle_; }
  std::span<const std::byte> bytes(const PickleNode& storage,
                                   const std::string& name) const override;

 private:
  std::string file_;
  ZipDirectory zip_;
  std::string folder_;
  ZipContent content_;
  Pickle pickle_;
};

// Older files: five pickles one after the other (a magic number, the protocol 1001, facts of the
// machine, the object, the keys of its storages), then for each key a count and the elements.
class TorchStream : public TorchStorages {
 public:
  static bool begins(std::span<const std::byte> file_bytes);
  // Throws ModelError: E-TRUNCATED, E-LIMIT, E-PICKLE, E-PICKLE-GLOBAL, E-TORCH.
  TorchStream(std::span<const std::byte> file_bytes, const std::string& file);
  const Pickle& pickle() const override { return pickle_; }
  std::span<const std::byte> bytes(const PickleNode& storage,
                                   const std::string& name) const override;

 private:
  std::string file_;
  Pickle pickle_;
  std::map<std::string, std::span<const std::byte>, std::less<>> storages_;
};

}  // namespace scgraft
