// SPDX-License-Identifier: Apache-2.0
#include "io/hdf5_lzf.h"

#include <hdf5.h>

#include <algorithm>
#include <array>

#include "io/limits.h"
#include "runtime/checked.h"
#include "runtime/error.h"

namespace scgraft::hdf5 {
namespace {

constexpr size_t kSizeParameter = 2;
constexpr size_t kLongestRepeat = 7 + 255 + 2;
constexpr size_t kBytesOfRepeat = 3;

// The size of an unpacked chunk that the filter's parameters claim, 0 when they do not.
int64_t chunk_bytes(std::span<const unsigned> parameters) {
  return parameters.size() > kSizeParameter ? int64_t{parameters[kSizeParameter]} : 0;
}

// Bytes of one element in a file. A text of any length is a pointer in memory, and a length, an
// address and an index there.
Checked stored_bytes(hid_t type, size_t address_bytes) {
  const size_t in_memory = H5Tget_size(type);
  switch (H5Tget_class(type)) {
    case H5T_STRING:
      return H5Tis_variable_str(type) > 0 ? 4 + address_bytes + 4 : in_memory;
    case H5T_VLEN:
      return 4 + address_bytes + 4;
    case H5T_ARRAY: {
      const Handle element(H5Tget_super(type));
      return Checked(in_memory / H5Tget_size(element.get())) *
             stored_bytes(element.get(), address_bytes);
    }
    case H5T_COMPOUND: {
      Checked bytes = in_memory;
      for (int i = 0; i < H5Tget_nmembers(type); ++i) {
        const Handle member(H5Tget_member_type(type, static_cast<unsigned>(i)));
        bytes =
            bytes + stored_bytes(member.get(), address_bytes) - Checked(H5Tget_size(member.get()));
      }
      return bytes;
    }
    default:
      return in_memory;
  }
}

size_t address_bytes(hid_t object) {
  const Handle file(H5Iget_file_id(object));
  const Handle create(H5Fget_create_plist(file.get()));
  size_t address = 0, length = 0;
  H5Pget_sizes(create.get(), &address, &length);
  return address;
}

// The innermost entry of the C library's stack of errors is what a caller is told.
size_t fail(const char* message) {
  H5Epush2(H5E_DEFAULT, __FILE__, __func__, __LINE__, H5E_ERR_CLS, H5E_PLINE, H5E_READERROR, "%s",
           message);
  return 0;
}

// H5Z_func_t: the bytes that `*buffer` holds afterwards, 0 for an error.
size_t filter(unsigned flags, size_t count, const unsigned* parameters, size_t bytes,
              size_t* capacity, void** buffer) {
  if ((flags & H5Z_FLAG_REVERSE) == 0) return 0;
  const auto size = static_cast<size_t>(chunk_bytes({parameters, count}));
  // Said before memory is taken for what no stream of that length can hold.
  if (size == 0 || size / kLongestRepeat > bytes / kBytesOfRepeat)
    return fail("an lzf chunk is too short for what it should unpack to");
  auto* out = static_cast<uint8_t*>(H5allocate_memory(size, false));
  if (out == nullptr) return fail("no memory is left for an lzf chunk");
  const char* wrong = unpack_lzf({static_cast<const uint8_t*>(*buffer), bytes}, {out, size});
  if (wrong != nullptr) {
    H5free_memory(out);
    return fail(wrong);
  }
  H5free_memory(*buffer);
  *buffer = out;
  *capacity = size;
  return size;
}

}  // namespace

const char* unpack_lzf(std::span<const uint8_t> packed, std::span<uint8_t> out) {
  constexpr const char* kEnds = "an lzf chunk ends inside a run";
  constexpr const char* kLong = "an lzf chunk unpacks to more than it should";
  size_t at = 0, end = 0;
  while (at < packed.size()) {
    const size_t control = packed[at++];
    if (control < 32) {
      const size_t length = control + 1;
      if (length > packed.size() - at) return kEnds;
      if (length > out.size() - end) return kLong;
      std::copy_n(packed.begin() + static_cast<std::ptrdiff_t>(at), length,
                  out.begin() + static_cast<std::ptrdiff_t>(end));
      at += length;
      end += length;
      continue;
    }
    const bool is_long = control >> 5 == 7;
    if (packed.size() - at < (is_long ? 2u : 1u)) return kEnds;
    const size_t length = (control >> 5) + 2 + (is_long ? packed[at++] : 0u);
    const size_t distance = ((control & 31) << 8 | packed[at++]) + 1;
    if (distance > end) return "an lzf chunk repeats bytes from before its begin";
    if (length > out.size() - end) return kLong;
    // Byte by byte: the run may overlap its source.
    for (const size_t stop = end + length; end < stop; ++end) out[end] = out[end - distance];
  }
  return end == out.size() ? nullptr : "an lzf chunk unpacks to less than it should";
}

void check_lzf(const Node& dataset) {
  const Handle create(H5Dget_create_plist(dataset.id()));
  const Handle type(H5Dget_type(dataset.id()));
  std::array<hsize_t, limits::kHdf5Rank> chunk{};
  const int rank = H5Pget_chunk(create.get(), static_cast<int>(chunk.size()), chunk.data());
  Checked bytes = stored_bytes(type.get(), address_bytes(dataset.id()));
  for (int i = 0; i < rank; ++i) bytes = bytes * chunk[static_cast<size_t>(i)];
  for (int i = 0; i < H5Pget_nfilters(create.get()); ++i) {
    unsigned flags = 0, config = 0;
    std::array<unsigned, kSizeParameter + 1> parameters{};
    size_t count = parameters.size();
    const H5Z_filter_t filter = H5Pget_filter2(create.get(), static_cast<unsigned>(i), &flags,
                                               &count, parameters.data(), 0, nullptr, &config);
    const int64_t claimed = chunk_bytes({parameters.data(), std::min(count, parameters.size())});
    if (filter == kLzfFilter && bytes != claimed)
      dataset.fail(
          cat("is stored in pieces of ", bytes.value(), " bytes, its filter lzf says ", claimed),
          "E-HDF5-READ");
  }
}

void register_lzf() {
  constexpr int kEncoder = 0, kDecoder = 1;
  const H5Z_class2_t lzf{H5Z_CLASS_T_VERS, kLzfFilter, kEncoder, kDecoder, "lzf",
                         nullptr,          nullptr,    filter};
  if (H5Zregister(&lzf) < 0) throw Error("the HDF5 library did not take the filter lzf");
}

}  // namespace scgraft::hdf5
