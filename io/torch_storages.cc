// SPDX-License-Identifier: Apache-2.0
#include "io/torch_storages.h"

#include <algorithm>
#include <cstring>

#include "io/byte_reader.h"
#include "io/limits.h"
#include "io/text.h"

namespace scgraft {
namespace {

constexpr const char* kHint = "the file may be damaged, or not a file of weights";
// pickle.dumps(0x1950a86a20f9469cfc6c, 2)
constexpr std::string_view kMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);

[[noreturn]] void fail(const std::string& file, const std::string& message,
                       const std::string& object = {}, const std::string& hint = kHint) {
  throw_file_error(FileKind::model, file, message, "E-TORCH", hint, escaped(object));
}

int64_t size_in_bytes(const PickleNode& storage) {
  int64_t bytes = 0;
  return __builtin_mul_overflow(storage.integer, size_of(*storage.dtype), &bytes) ? -1 : bytes;
}

}  // namespace

TorchZip::TorchZip(std::span<const std::byte> file_bytes, const std::string& file)
    : file_(file), zip_(ZipDirectory::parse(file_bytes, FileKind::model, file)) {
  for (const auto& [name, entry] : zip_.entries()) {
    const size_t slash = name.find('/');
    if (slash != std::string::npos && name.substr(slash) == "/data.pkl")
      folder_ = name.substr(0, slash + 1);
  }
  if (folder_.empty())
    fail(file_, "is a zip archive without data.pkl, so it was not written by torch.save");
  if (const ZipEntry* order = zip_.find(folder_ + "byteorder")) {
    const ZipContent content = zip_.read(*order, 16);
    const std::string_view text(reinterpret_cast<const char*>(content.bytes.data()),
                                content.bytes.size());
    if (text != "little")
      fail(file_, cat("has byte order \"", escaped(text), "\", little is needed"));
  }
  content_ = zip_.read(*zip_.find(folder_ + "data.pkl"), limits::kPickleBytes);
  pickle_ = Pickle::parse(content_.bytes, FileKind::model, file_);
}

std::span<const std::byte> TorchZip::bytes(const PickleNode& storage,
                                           const std::string& name) const {
  const std::string entry_name = folder_ + "data/" + std::string(storage.text);
  const ZipEntry* entry = zip_.find(entry_name);
  if (entry == nullptr)
    fail(file_,
         cat("tensor \"", escaped(name), "\" lies in \"", escaped(entry_name),
             "\", which the archive does not have"),
         name);
  if (entry->method != 0)
    fail(file_, cat("tensor \"", escaped(name), "\" lies in a compressed entry"), name,
         "torch.save stores entries uncompressed; save the file again with it");
  const int64_t bytes = size_in_bytes(storage);
  if (bytes < 0 || bytes > entry->size)
    fail(file_,
         cat("tensor \"", escaped(name), "\" lies in a storage of ", storage.integer,
             " elements, the archive holds ", entry->size, " bytes of it"),
         name);
  return entry->packed.subspan(0, static_cast<size_t>(bytes));
}

bool TorchStream::begins(std::span<const std::byte> file_bytes) {
  return file_bytes.size() >= kMagic.size() &&
         std::memcmp(file_bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

TorchStream::TorchStream(std::span<const std::byte> file_bytes, const std::string& file)
    : file_(file) {
  std::span<const std::byte> rest = file_bytes.subspan(kMagic.size());
  const auto next = [&] {
    const size_t most = std::min<size_t>(rest.size(), limits::kPickleBytes);
    Pickle pickle = Pickle::parse(rest.subspan(0, most), FileKind::model, file_);
    rest = rest.subspan(pickle.size());
    return pickle;
  };
  const Pickle protocol = next();
  if (protocol[protocol.root()].kind != PickleKind::integer ||
      protocol[protocol.root()].integer != 1001)
    fail(file_, "is a PyTorch stream of an unknown protocol, 1001 is needed");
  const Pickle machine = next();
  const PickleNode* little = machine.find(machine[machine.root()], "little_endian");
  if (little != nullptr && little->integer == 0)
    fail(file_, "was written on a machine with the high byte first");
  pickle_ = next();

  // What each storage is made of is said by the object alone.
  std::map<std::string_view, const PickleNode*> described;
  for (PickleId id = 0; id < pickle_.count(); ++id)
    if (pickle_[id].kind == PickleKind::storage) described[pickle_[id].text] = &pickle_[id];
  const Pickle keys = next();
  ByteReader reader(rest, FileKind::model, file_, "the list of storages");
  for (const PickleId id : keys[keys.root()].items) {
    const std::string key(keys[id].text);
    const auto storage = described.find(key);
    if (keys[id].kind != PickleKind::text || storage == described.end())
      fail(file_, cat("has a storage \"", escaped(key), "\" that its object does not know"));
    const auto count = reader.number<int64_t>();
    if (count != storage->second->integer)
      fail(file_, cat("has ", count, " elements of the storage \"", escaped(key), "\", where ",
                      storage->second->integer, " are needed"));
    storages_[key] =
        reader.take(static_cast<uint64_t>(std::max<int64_t>(size_in_bytes(*storage->second), 0)));
  }
}

std::span<const std::byte> TorchStream::bytes(const PickleNode& storage,
                                              const std::string& name) const {
  const auto found = storages_.find(storage.text);
  if (found == storages_.end())
    fail(file_,
         cat("tensor \"", escaped(name), "\" lies in the storage \"", escaped(storage.text),
             "\", which the file does not have"),
         name);
  const int64_t bytes = size_in_bytes(storage);
  if (bytes < 0 || static_cast<size_t>(bytes) > found->second.size())
    fail(file_,
         cat("tensor \"", escaped(name), "\" lies in a storage of ", storage.integer,
             " elements, the file holds ", found->second.size(), " bytes of it"),
         name);
  return found->second.subspan(0, static_cast<size_t>(bytes));
}

}  // namespace scgraft
