// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <zlib.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace scgraft {

// `value` as little-endian bytes.
template <class T>
std::string le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

struct ArchiveEntry {
  std::string name;
  std::string content;
  bool deflated = false;
};

// A zip archive, built byte by byte so that tests know where to damage it.
inline std::string zip_of(const std::vector<ArchiveEntry>& entries) {
  std::string out, directory;
  for (const ArchiveEntry& entry : entries) {
    std::string packed = entry.content;
    if (entry.deflated) {
      z_stream stream{};
      deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
      packed.resize(deflateBound(&stream, entry.content.size()));
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(entry.content.data()));
      stream.avail_in = static_cast<uInt>(entry.content.size());
      stream.next_out = reinterpret_cast<Bytef*>(packed.data());
      stream.avail_out = static_cast<uInt>(packed.size());
      deflate(&stream, Z_FINISH);
      packed.resize(stream.total_out);
      deflateEnd(&stream);
    }
    const auto crc = static_cast<uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef*>(entry.content.data()), entry.content.size()));
    const std::string common = le<uint16_t>(0) + le<uint16_t>(entry.deflated ? 8 : 0) +
                               le<uint32_t>(0) + le(crc) + le<uint32_t>(packed.size()) +
                               le<uint32_t>(entry.content.size()) + le<uint16_t>(entry.name.size());
    const auto offset = static_cast<uint32_t>(out.size());
    out += "PK\x03\x04" + le<uint16_t>(20) + common + le<uint16_t>(0) + entry.name + packed;
    directory += "PK\x01\x02" + le<uint16_t>(20) + le<uint16_t>(20) + common +
                 std::string(12, '\0') + le(offset) + entry.name;
  }
  const auto start = static_cast<uint32_t>(out.size());
  const auto count = static_cast<uint16_t>(entries.size());
  return out + directory + "PK\x05\x06" + le<uint32_t>(0) + le(count) + le(count) +
         le<uint32_t>(directory.size()) + le(start) + le<uint16_t>(0);
}

// Pieces of a pickle of protocol 2, as PyTorch writes them.
namespace pickled {
inline std::string text(std::string_view value) {
  return std::string("X").append(le<uint32_t>(value.size())).append(value);
}
inline std::string integer(int32_t value) { return std::string("J").append(le(value)); }
inline std::string global(std::string_view module, std::string_view name) {
  return std::string("c").append(module).append("\n").append(name).append("\n");
}
inline std::string tuple(const std::vector<std::string>& items) {
  std::string out = "(";
  for (const std::string& item : items) out += item;
  return out + "t";
}
inline std::string integers(const std::vector<int32_t>& values) {
  std::vector<std::string> items;
  for (int32_t v : values) items.push_back(integer(v));
  return tuple(items);
}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += text(key) + value;
  return out + "u";
}
inline std::string tensor(std::string_view storage_class, std::string_view key, int32_t count,
                          int32_t offset, const std::vector<int32_t>& size,
                          const std::vector<int32_t>& stride) {
  return global("torch._utils", "_rebuild_tensor_v2") +
         tuple({tuple({text("storage"), global("torch", storage_class), text(key), text("cpu"),
                       integer(count)}) +
                    "Q",
                integer(offset), integers(size), integers(stride), "\x89",
                global("collections", "OrderedDict") + ")R"}) +
         "R";
}
inline std::string whole(const std::string& body) { return "\x80\x02" + body + "."; }
}  // namespace pickled

// A file of torch.save around a pickle and its storages.
inline std::string torch_file(const std::string& pickle,
                              const std::vector<std::pair<std::string, std::string>>& storages) {
  std::vector<ArchiveEntry> entries = {{"archive/data.pkl", pickle}};
  for (const auto& [key, bytes] : storages) entries.push_back({"archive/data/" + key, bytes});
  entries.push_back({"archive/version", "3\n"});
  return zip_of(entries);
}

template <class T>
std::string packed(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace scgraft
