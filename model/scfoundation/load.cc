// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/load.h"

#include <cmath>
#include <filesystem>

#include "io/checkpoint.h"
#include "io/file_error.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/text.h"
#include "model/checkpoint_source.h"
#include "model/model_folder.h"

namespace scgraft {
namespace {

constexpr const char* kWeights = "models.ckpt";
constexpr const char* kOneBranch = "model.safetensors";
constexpr const char* kSizes = "config.json";
constexpr const char* kProjection =
    "decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix";
constexpr const char* kHead = "fc1.";
constexpr const char* kHeadRows = "fc1.2.weight";  // a row for each class
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

// The weights of a branch: of models.ckpt, or of a folder that holds one branch alone.
Checkpoint open_branch(const std::string& folder, const std::string& branch, std::string& path) {
  std::error_code ignored;
  const std::string alone = (std::filesystem::path(folder) / kOneBranch).string();
  if (std::filesystem::exists(path, ignored) || !std::filesystem::exists(alone, ignored))
    return open_checkpoint(path, branch + "/state_dict");
  path = alone;
  Checkpoint file = open_checkpoint(path);
  const std::string there = file.values().value("branch", "");
  if (there == branch) return file;
  throw_file_error(
      FileKind::model, path,
      cat("holds the branch \"", escaped(there), "\", and \"", escaped(branch), "\" is asked for"),
      "E-CHECKPOINT", "name the branch it has, or the folder of models.ckpt");
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
  std::string path = (fs::path(folder) / kWeights).string();
  const Checkpoint file = open_branch(folder, options.branch, path);
  std::string sizes = path;
  const nlohmann::json& values = file.values();
  if (values.contains(options.branch) && values[options.branch].contains("config")) {
    model.sizes = ScfoundationConfig::flat(values[options.branch]["config"], path);
  } else {
    sizes = (fs::path(folder) / kSizes).string();
    model.sizes = read_json(sizes, FileKind::model);
  }
  model.config = ScfoundationConfig::from_json(model.sizes, sizes);
  CheckpointSource tensors(file, options.dtype, canonical_scfoundation_name);
  const std::string named = fs::path(sizes).filename().string();
  const bool fresh_head = options.new_head_classes > 0;
  const bool own_head = options.heads && !fresh_head && tensors.has(kHeadRows);
  const int64_t classes = own_head ? tensors.rows(kHeadRows) : options.new_head_classes;
  // A network with a missing tensor is never returned, and may not even come together.
  try {
    const int64_t features = !options.decoder           ? 0
                             : tensors.has(kProjection) ? tensors.rows(kProjection)
                                                        : 1;
    model.network = std::make_unique<ScfoundationNetwork>(
        model.config, features,
        [&](const std::string& name, const Shape& shape) {
          return fresh_head && name.starts_with(kHead) ? fresh_head_value(name, shape, options)
                                                       : tensors.take(name, shape);
        },
        classes);
  } catch (const ShapeError&) {
    tensors.check(named);
    throw;
  }
  tensors.check(named);

  model.ignored = tensors.ignored(
      [&](const std::string& name) {
        return name == "decoder.performer.calls_since_last_redraw" ||
               (!own_head && name.starts_with(kHead)) || (!options.decoder && is_of_decoder(name));
      },
      options.claims);
  model.fingerprint = file.fingerprint();
  return model;
}

void save_scfoundation(const std::string& folder, const ScfoundationModel& model,
                       const std::vector<std::string>& labels) {
  const auto in = [&](const char* name) { return (std::filesystem::path(folder) / name).string(); };
  std::vector<NamedTensor> tensors;
  HostCopies host;
  for (const Parameter* p : model.network->parameters().all())
    tensors.push_back({p->name, host.view(p->value)});
  write_safetensors(in(kOneBranch), std::move(tensors),
                    {{"model_type", "scfoundation"}, {"branch", model.branch}}, Overwrite::replace);
  nlohmann::json sizes = model.sizes;
  sizes["bin_num"] = model.config.bins;  // by which folder_kind() knows the folder
  write_json(in(kSizes), sizes, Overwrite::replace);
  constexpr std::string_view kGenes[] = {"OS_scRNA_gene_index.19264.tsv"};
  save_beside(model.path, folder, kGenes, labels);
}

}  // namespace scgraft
