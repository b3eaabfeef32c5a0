// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "io/hdf5.h"

// The filter "lzf" that h5py packs chunks with and stock HDF5 does not have.
namespace scgraft::hdf5 {

inline constexpr int kLzfFilter = 32000;

// Unpacks a stream that fills `out` exactly. Nothing is read or written outside the two; returns
// null, or, for a damaged stream, what is wrong with it.
//
// A stream is a sequence of runs. A first byte c below 32 is followed by c + 1 bytes as they are.
// Any other repeats earlier output: its upper three bits give the length minus 2, where 7 adds the
// byte that follows; its lower five bits and then one more byte give the distance minus 1, upper
// bits first. A run may repeat bytes that it has just written itself. Source: format of LibLZF's
// compressed data, without the header of its files.
const char* unpack_lzf(std::span<const uint8_t> packed, std::span<uint8_t> out);

// Makes the C library read chunks of filter 32000. They are not packed again: what is written to a
// dataset with this filter is stored as it is where the filter is optional, as it is in files of
// h5py, and is an error elsewhere.
// Throws Error when the C library does not take the filter.
void register_lzf();

// The third parameter of the filter is the size of an unpacked chunk in bytes. It is what chunks
// unpack to, and a chunk of another length is an error of the read; but the C library believes that
// what a filter gives back is a whole chunk, so it must be one.
// Throws DataError E-HDF5-READ when a chunked dataset has the filter with another size.
void check_lzf(const Node& dataset);

}  // namespace scgraft::hdf5
