// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/load.h"

#include <cmath>
#include <filesystem>

#include "io/checkpoint.h"
#include "io/json.h"
#include "model/checkpoint_source.h"

namespace scgraft {
namespace {

constexpr const char* kWeights = "models.ckpt";
constexpr const char* kSizes = "config.json";
constexpr const char* kProjection =
    "decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix";
constexpr const char* kHead = "fc1.";
constexpr const char* kHeadOut = "fc1.2.weight";
constexpr const char* kModule = "model.";

bool is_of_decoder(const std::string& name) {
  for (const char* part : {"decoder_embed.", "decoder.", "norm.", "to_final."})
    if (name.starts_with(part)) return true;
  return false;
}

// As torch initialises a layer's weight; biases begin at 0.
Tensor fresh_head_value(const std::string& name, const Shape& shape,
                        const ScfoundationLoadOptions& options) {
  Parameter p{name, Tensor(shape, options.dtype), {}};
  if (shape.rank() == 2)
    initialise_uniform(p, 1.0 / std::sqrt(static_cast<double>(shape[1])), options.seed);
  else
    fill(p, 0.0);
  return std::move(p.value);
}

}  // namespace

std::string canonical_scfoundation_name(const std::string& name) {
  const size_t at = name.find(kModule);
  return at == std::string::npos ? name : name.substr(at + std::string_view(kModule).size());
}

ScfoundationModel load_scfoundation(const std::string& folder,
                                    const ScfoundationLoadOptions& options) {
  namespace fs = std::filesystem;
  ScfoundationModel model;
  model.path = folder;
  model.branch = options.branch;
  const std::string path = (fs::path(folder) / kWeights).string();
  const Checkpoint file = open_checkpoint(path, options.branch + "/state_dict");
  std::string sizes = path;
  const nlohmann::json& values = file.values();
  if (values.contains(options.branch) && values[options.branch].contains("config")) {
    model.config = ScfoundationConfig::from_branch(values[options.branch]["config"], path);
  } else {
    sizes = (fs::path(folder) / kSizes).string();
    model.config = ScfoundationConfig::from_json(read_json(sizes, FileKind::model), sizes);
  }
  CheckpointSource tensors(file, options.dtype, canonical_scfoundation_name);
  const std::string named = fs::path(sizes).filename().string();
  int64_t classes = options.new_head_classes;
  if (classes == 0 && tensors.has(kHeadOut)) classes = tensors.rows(kHeadOut);
  // A network with a missing tensor is never returned, and may not even come together.
  try {
    const int64_t features = !options.decoder           ? 0
                             : tensors.has(kProjection) ? tensors.rows(kProjection)
                                                        : 1;
    model.network = std::make_unique<ScfoundationNetwork>(
        model.config, features,
        [&](const std::string& name, const Shape& shape) {
          const bool fresh = options.new_head_classes > 0 && name.starts_with(kHead);
          return fresh ? fresh_head_value(name, shape, options) : tensors.take(name, shape);
        },
        classes);
  } catch (const ShapeError&) {
    tensors.check(named);
    throw;
  }
  tensors.check(named);

  std::vector<std::string> extra;
  for (const std::string& original : tensors.left()) {
    const std::string name = canonical_scfoundation_name(original);
    if (name == "decoder.performer.calls_since_last_redraw" ||
        (!options.decoder && is_of_decoder(name)) ||
        (options.new_head_classes > 0 && name.starts_with(kHead)))
      model.ignored.push_back(original);
    else if (!options.claims || !options.claims(original))
      extra.push_back(original);
  }
  tensors.refuse(extra);
  model.fingerprint = file.fingerprint();
  return model;
}

}  // namespace scgraft
