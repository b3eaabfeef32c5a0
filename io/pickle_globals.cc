// SPDX-License-Identifier: Apache-2.0
#include "io/pickle_globals.h"

#include <iterator>

namespace scgraft {
namespace {

// Inert names are containers of numbers and settings that training programs put beside the
// weights. They are listed one by one: a whole module would let in functions that run text.
constexpr PickleGlobal kGlobals[] = {
    {"collections.OrderedDict", PickleRole::dict, {}},
    {"collections.defaultdict", PickleRole::dict, {}},
    {"torch._utils._rebuild_tensor_v2", PickleRole::rebuild_tensor, {}},
    {"torch._utils._rebuild_parameter", PickleRole::rebuild_parameter, {}},
    {"torch.FloatStorage", PickleRole::storage, DType::f32},
    {"torch.DoubleStorage", PickleRole::storage, DType::f64},
    {"torch.HalfStorage", PickleRole::storage, DType::f16},
    {"torch.BFloat16Storage", PickleRole::storage, DType::bf16},
    {"torch.LongStorage", PickleRole::storage, DType::i64},
    {"torch.IntStorage", PickleRole::storage, DType::i32},
    {"torch.ShortStorage", PickleRole::storage, DType::i16},
    {"torch.CharStorage", PickleRole::storage, DType::i8},
    {"torch.ByteStorage", PickleRole::storage, DType::u8},
    {"torch.BoolStorage", PickleRole::storage, DType::boolean},
    {"numpy.dtype", PickleRole::numpy_dtype, {}},
    {"numpy.core.multiarray.scalar", PickleRole::numpy_scalar, {}},
    {"numpy._core.multiarray.scalar", PickleRole::numpy_scalar, {}},
    {"numpy.core.multiarray._reconstruct", PickleRole::inert, {}},
    {"numpy._core.multiarray._reconstruct", PickleRole::inert, {}},
    {"numpy.ndarray", PickleRole::inert, {}},
    {"pandas.core.frame.DataFrame", PickleRole::inert, {}},
    {"pandas.core.internals.managers.BlockManager", PickleRole::inert, {}},
    {"pandas._libs.internals._unpickle_block", PickleRole::inert, {}},
    {"pandas.core.indexes.base._new_Index", PickleRole::inert, {}},
    {"pandas.core.indexes.base.Index", PickleRole::inert, {}},
    {"_codecs.encode", PickleRole::inert, {}},
    {"__builtin__.bytes", PickleRole::inert, {}},
    {"__builtin__.dict", PickleRole::inert, {}},
    {"__builtin__.slice", PickleRole::inert, {}},
    {"builtins.bytes", PickleRole::inert, {}},
    {"builtins.dict", PickleRole::inert, {}},
    {"builtins.slice", PickleRole::inert, {}},
    {"torch.Size", PickleRole::inert, {}},
    {"torch.device", PickleRole::inert, {}},
    {"argparse.Namespace", PickleRole::inert, {}},
};

}  // namespace

int find_pickle_global(std::string_view name) {
  for (size_t row = 0; row < std::size(kGlobals); ++row)
    if (kGlobals[row].name == name) return static_cast<int>(row);
  return -1;
}

const PickleGlobal& pickle_global(int row) { return kGlobals[row]; }

}  // namespace scgraft
