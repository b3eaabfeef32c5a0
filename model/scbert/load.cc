// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/load.h"

#include <cmath>
#include <filesystem>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/checkpoint_source.h"
#include "model/model_folder.h"

namespace scgraft {
namespace {

constexpr const char* kSizes = "config.json";
// A convolution over one row and all features.
constexpr const char* kRowWeight = "to_out.conv1.weight";

bool is_head(const std::string& name) { return name.starts_with("to_out."); }

// As torch initialises a layer's weight; biases begin at 0.
Tensor fresh_head_value(const std::string& name, const Shape& shape,
                        const ScbertLoadOptions& options) {
  Parameter p{name, Tensor(shape, options.dtype), {}};
  if (shape.rank() == 2)
    initialise_uniform(p, 1.0 / std::sqrt(static_cast<double>(shape[1])), options.seed);
  else
    fill(p, 0.0);
  return std::move(p.value);
}

}  // namespace

ScbertModel load_scbert(const std::string& folder, const ScbertLoadOptions& options) {
  ScbertModel model;
  model.path = folder;
  const std::string config = (std::filesystem::path(folder) / kSizes).string();
  model.sizes = read_json(config, FileKind::model);
  model.config = ScbertConfig::from_json(model.sizes, config);
  const Checkpoint file = open_checkpoint(folder);
  CheckpointSource tensors(file, options.dtype, [](const std::string& name) { return name; });

  const int64_t features =
      tensors.rows("performer.net.layers.0.0.fn.fast_attention.projection_matrix");
  model.config.qkv_bias = tensors.has("performer.net.layers.0.0.fn.to_q.bias");
  ScbertNetwork::Heads heads;
  const bool fresh_head = options.new_head_classes > 0;
  const bool own_heads = options.heads && !fresh_head;
  heads.bins = own_heads && tensors.has("to_out.weight");
  if (fresh_head) {
    heads.classes = options.new_head_classes;
    heads.rows = model.config.positions;
  } else if (own_heads && tensors.has("to_out.fc3.weight")) {
    heads.classes = tensors.rows("to_out.fc3.weight");
    heads.width1 = tensors.rows("to_out.fc1.weight");
    heads.width2 = tensors.rows("to_out.fc2.weight");
    heads.rows = tensors.columns("to_out.fc1.weight");
  }
  const ParameterSource source = [&](const std::string& name, const Shape& shape) {
    if (fresh_head && is_head(name)) return fresh_head_value(name, shape, options);
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

  model.ignored = tensors.ignored(
      [&](const std::string& name) {
        return name == "performer.calls_since_last_redraw" || (!own_heads && is_head(name));
      },
      options.claims);
  model.fingerprint = file.fingerprint();
  return model;
}

void save_scbert(const std::string& folder, const ScbertModel& model,
                 const std::vector<std::string>& labels) {
  const auto in = [&](const char* name) { return (std::filesystem::path(folder) / name).string(); };
  std::vector<NamedTensor> tensors;
  HostCopies host;
  for (const Parameter* p : model.network->parameters().all()) {
    ConstTensorView view = host.view(p->value);
    if (p->name == kRowWeight) view = view.reshape({1, 1, view.dim(0), view.dim(1)});
    tensors.push_back({p->name, view});
  }
  write_safetensors(in("model.safetensors"), std::move(tensors), {{"model_type", "scbert"}},
                    Overwrite::replace);
  write_json(in(kSizes), model.sizes, Overwrite::replace);
  constexpr std::string_view kGenes[] = {"genes.txt"};
  save_beside(model.path, folder, kGenes, labels);
}

}  // namespace scgraft
