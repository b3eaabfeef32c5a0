// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/load.h"

#include <filesystem>

#include "io/checkpoint.h"
#include "io/json.h"
#include "model/checkpoint_source.h"

namespace scgraft {
namespace {

constexpr const char* kSizes = "config.json";
// A convolution over one row and all features.
constexpr const char* kRowWeight = "to_out.conv1.weight";

}  // namespace

ScbertModel load_scbert(const std::string& folder, const ScbertLoadOptions& options) {
  ScbertModel model;
  model.path = folder;
  const std::string config = (std::filesystem::path(folder) / kSizes).string();
  model.config = ScbertConfig::from_json(read_json(config, FileKind::model), config);
  const Checkpoint file = open_checkpoint(folder);
  CheckpointSource tensors(file, options.dtype, [](const std::string& name) { return name; });

  const int64_t features =
      tensors.rows("performer.net.layers.0.0.fn.fast_attention.projection_matrix");
  model.config.qkv_bias = tensors.has("performer.net.layers.0.0.fn.to_q.bias");
  ScbertNetwork::Heads heads;
  heads.bins = tensors.has("to_out.weight");
  if (tensors.has("to_out.fc3.weight")) {
    heads.classes = tensors.rows("to_out.fc3.weight");
    heads.width1 = tensors.rows("to_out.fc1.weight");
    heads.width2 = tensors.rows("to_out.fc2.weight");
    heads.rows = tensors.columns("to_out.fc1.weight");
  }
  const ParameterSource source = [&](const std::string& name, const Shape& shape) {
    if (name != kRowWeight) return tensors.take(name, shape);
    const Tensor four = tensors.take(name, {1, 1, shape[0], shape[1]});
    if (four.numel() != shape.numel()) return Tensor({0}, options.dtype);  // check() says why
    Tensor two(shape, options.dtype);
    copy(four.view().reshape(shape), two.view());
    return two;
  };
  // A network with a missing tensor is never returned, and may not even come together.
  try {
    model.network = std::make_unique<ScbertNetwork>(model.config, features, heads, source);
  } catch (const ShapeError&) {
    tensors.check(kSizes);
    throw;
  }
  tensors.check(kSizes);

  std::vector<std::string> extra;
  for (const std::string& name : tensors.left()) {
    if (name == "performer.calls_since_last_redraw")
      model.ignored.push_back(name);
    else if (!options.claims || !options.claims(name))
      extra.push_back(name);
  }
  tensors.refuse(extra);
  model.fingerprint = file.fingerprint();
  return model;
}

}  // namespace scgraft
