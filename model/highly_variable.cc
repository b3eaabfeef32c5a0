// SPDX-License-Identifier: Apache-2.0
#include "model/highly_variable.h"

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {

HvgFlavour parse_hvg_flavour(const std::string& name) {
  if (name == "seurat_v3") return HvgFlavour::seurat_v3;
  require<ConfigError>(name == "cell_ranger", "hvg must be seurat_v3 or cell_ranger, not \"",
                       escaped(name, 40), "\"");
  return HvgFlavour::cell_ranger;
}

std::vector<int32_t> highly_variable(RowReader&, std::span<const uint8_t>, const HvgOptions&) {
  throw ConfigError("choosing highly variable genes is not available in this build", "E-HVG");
}

}  // namespace scgraft
