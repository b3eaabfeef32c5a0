// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/hdf5.h"

// What the parts of Node share; for its own source files.
namespace scgraft::hdf5 {

struct Node::State {
  Handle handle;
  std::string file;
  std::string path;
  int64_t file_bytes = 0;
  bool group = false;
  std::vector<int64_t> shape;
  ElementType type;
  int64_t chunk_rows = 0;
  std::optional<std::string> field;  // the one of a compound dataset that this is
};

// What a type of the C library holds.
ElementType element_type(int64_t type);

}  // namespace scgraft::hdf5
