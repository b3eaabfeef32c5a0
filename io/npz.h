// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <string>

#include "io/output.h"
#include "runtime/tensor.h"

namespace scgraft {

// Arrays in the files of NumPy: one array per .npy file, a zip archive of them per .npz file.
//
// Read: header versions 1 to 3, row-major or column-major (turned into row-major), rank 0 to 4,
// little-endian elements f8 f4 f2 i8 i4 i2 i1 u1 b1. Every claim of a header is compared with the
// bytes there are before memory is taken; unpacked arrays of one file may take at most
// limits::kHostBudgetBytes together.
//
// Throws DataError: E-NPY (header, type, order of bytes, shape or size; names the array) and, for
// the archive, E-ZIP, E-TRUNCATED, E-LIMIT.
// Source: NumPy Enhancement Proposal 1 and numpy/lib/format.py (the description of the format).

// Every array of an .npz file by its name, without ".npy".
std::map<std::string, Tensor> read_npz(const std::string& path);
Tensor read_npy(const std::string& path);

// Writes arrays by name, uncompressed, in order of names; bf16 becomes f32, which NumPy has. Equal
// content gives equal bytes. Throws as OutputFile does, and TypeError for a tensor on a device.
void write_npz(const std::string& path, const std::map<std::string, ConstTensorView>& arrays,
               Overwrite overwrite);

}  // namespace scgraft
