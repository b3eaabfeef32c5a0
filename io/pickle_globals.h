// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "runtime/dtype.h"

namespace scgraft {

// What an allowed name means to the reader.
enum class PickleRole : uint8_t {
  dict,               // an (ordered, default) dictionary
  storage,            // a PyTorch storage class with an element type
  rebuild_tensor,     // torch._utils._rebuild_tensor_v2
  rebuild_parameter,  // torch._utils._rebuild_parameter
  numpy_dtype,
  numpy_scalar,
  inert,  // becomes an opaque node
};

struct PickleGlobal {
  std::string_view name;  // "module.attribute"
  PickleRole role;
  std::optional<DType> dtype;
};

// The row of an allowed name, or -1. The table is the whole list of names that may occur.
int find_pickle_global(std::string_view name);
const PickleGlobal& pickle_global(int row);

}  // namespace scgraft
