// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "adapters/peft_config.h"
#include "adapters/store.h"
#include "adapters/store_files.h"
#include "io/file_error.h"
#include "io/json.h"
#include "io/limits.h"
#include "io/mapped_file.h"
#include "io/text.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using namespace adapter_files;

[[noreturn]] void fail(const std::string& file, const std::string& message,
                       const std::string& hint = {}, const char* code = "E-ADAPTER") {
  throw_file_error(FileKind::model, file, message, code, hint);
}

std::string in(const std::string& folder, const char* name) {
  return (fs::path(folder) / name).string();
}

bool has(const std::string& folder, const char* name) {
  std::error_code error;
  return fs::exists(fs::path(folder) / name, error);
}

void require_adapter_folder(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error))
    fail(folder, "there is no such adapter folder", "check the path");
  if (!has(folder, kConfig))
    fail(folder, cat("is not an adapter folder: ", kConfig, " is missing"),
         has(folder, "args.json") || has(folder, "config.json")
             ? "this looks like the folder of a backbone; give the one that training wrote"
             : "give the folder that training wrote");
}

// A typed look at an object whose keys nobody has checked yet.
template <class T>
T value(const json& object, const char* key, const std::string& file) {
  try {
    return object.at(key).get<T>();
  } catch (const json::exception&) {
    fail(file, cat("the entry \"", key, "\" is missing or of the wrong kind"),
         "the file was written by something else; save the adapter again");
  }
}

json object_of(const std::string& folder, const char* name) {
  if (!has(folder, name)) return {};
  json object = read_json(in(folder, name), FileKind::model);
  if (!object.is_object()) fail(in(folder, name), "does not hold a JSON object");
  return object;
}

// The model card is for people, who may edit it.
void require_undamaged(const std::string& folder) {
  for (const FileCheck& check : check_manifest(folder)) {
    const bool ours = check.file.ends_with(".json") || check.file.ends_with(".safetensors") ||
                      check.file == kGenes || check.file == kTorchTensors;
    if (!check.ok() && ours)
      fail(folder, cat("is damaged: ", escaped(check.file), " ", check.fault),
           "fetch or write the folder again; sha256sum -c MANIFEST.sha256 checks it",
           "E-ADAPTER-DAMAGED");
  }
}

std::vector<std::string> read_genes(const std::string& path) {
  const auto file = MappedFile::open(path, FileKind::model);
  std::string_view rest(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  std::vector<std::string> lines;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    lines.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (static_cast<int64_t>(lines.size()) > limits::kGenes)
      fail(path, cat("has more than ", limits::kGenes, " genes"));
  }
  if (lines.empty() || lines[0] != kGenesHeader)
    fail(path, cat("does not begin with the line \"", kGenesHeader, "\""));
  lines.erase(lines.begin());
  return lines;
}

void read_labels(const std::string& folder, AdapterBundle& bundle) {
  const std::string path = in(folder, kLabels);
  json labels = object_of(folder, kLabels);
  if (labels.is_null()) return;
  bundle.labels = value<std::vector<std::string>>(labels, "classes", path);
  if (labels.contains("counts"))
    bundle.label_counts = value<std::vector<int64_t>>(labels, "counts", path);
  if (!bundle.label_counts.empty() && bundle.label_counts.size() != bundle.labels.size())
    fail(path,
         cat("has ", bundle.labels.size(), " classes and ", bundle.label_counts.size(), " counts"));
  labels.erase("classes");
  labels.erase("counts");
  if (!labels.empty()) bundle.labels_extra = std::move(labels);
}

// What provenance.json says about the adapter itself.
void read_record(const std::string& folder, const PeftConfig& config, LoadedBundle& out) {
  const std::string path = in(folder, kProvenance);
  AdapterBundle& bundle = out.bundle;
  bundle.provenance = object_of(folder, kProvenance);
  if (!bundle.provenance.is_object() || !bundle.provenance.contains(kSection))
    fail(path, cat("has no section \"", kSection, "\""), "save the adapter again");
  const json section = bundle.provenance[kSection];
  bundle.provenance.erase(kSection);
  if (bundle.provenance.empty()) bundle.provenance = nullptr;
  const auto format = value<int64_t>(section, "format", path);
  if (format > kFormat)
    fail(path, cat("is of format ", format, ", this version reads up to ", kFormat),
         "use a newer scgraft");
  const json base = value<json>(section, "base", path);
  bundle.base_path = value<std::string>(base, "path", path);
  bundle.base_fingerprint = value<std::string>(base, "fingerprint", path);
  bundle.base_kind = value<std::string>(base, "kind", path);
  out.saved = value<std::vector<std::string>>(section, "trained", path);
  const json adapter = value<json>(section, "adapter", path);
  bundle.has_adapter = !adapter.is_null();
  if (bundle.has_adapter) bundle.options = options_from_json(adapter, path);

  // PEFT reads the one, we read the other: they must not tell two stories.
  const AdapterOptions& o = bundle.options;
  bool same = config.kind == (bundle.has_adapter ? o.type : "") && config.ranks.empty() &&
              config.alphas.empty() && !config.rank_stabilised;
  if (config.kind == "lora" || config.kind == "hra") same = same && config.rank == o.rank;
  if (config.kind == "lora") same = same && config.alpha == o.alpha;
  if (config.kind == "oft")
    same = same && config.block_size == o.block_size && config.constraint == o.constraint &&
           (o.block_size > 0 || config.blocks == o.blocks);
  if (config.kind == "prefix_tuning")
    same = same && (!config.every_layer || config.tokens == o.tokens);
  if (!same)
    fail(folder, cat(kConfig, " and ", kProvenance, " describe different adapters"),
         "save the adapter again");
}

void infer_record(const PeftConfig& config, LoadedBundle& out) {
  AdapterBundle& bundle = out.bundle;
  out.recorded = false;
  bundle.base_path = config.base_path;
  bundle.has_adapter = !config.kind.empty();
  bundle.options.type = config.kind;
  bundle.options.rank = config.rank;
  bundle.options.alpha = config.scale(config.rank, config.alpha) * static_cast<double>(config.rank);
  bundle.options.dropout = config.dropout;
  bundle.options.blocks = config.blocks;
  bundle.options.block_size = config.block_size;
  bundle.options.constraint = config.constraint;
  bundle.options.tokens = config.tokens;
  bundle.options.targets.clear();  // see place_peft_tensors()
  if (config.kind == "prefix_tuning") {
    const std::string wrapped = trained_key(config.kind, "");
    for (const TensorInfo& info : out.tensors.tensors())
      if (info.name.starts_with(wrapped)) out.saved.push_back(info.name.substr(wrapped.size()));
    return;
  }
  for (const TensorInfo& info : out.tensors.tensors())
    if (info.name.starts_with(kWrapped) && info.name.find(".lora_") == std::string::npos &&
        !info.name.ends_with(".hra_u") && !info.name.ends_with(".oft_R.weight"))
      out.saved.push_back(info.name.substr(kWrapped.size()));
}

}  // namespace

AdapterOptions adapter_files::options_from_json(const json& object, const std::string& file) {
  AdapterOptions options;
  options.type = value<std::string>(object, "type", file);
  options.rank = value<int64_t>(object, "r", file);
  options.alpha = value<double>(object, "lora_alpha", file);
  options.dropout = value<double>(object, "lora_dropout", file);
  options.targets = value<std::vector<std::string>>(object, "targets", file);
  // What the releases before did not have.
  if (object.contains("width")) {
    options.width = value<double>(object, "width", file);
    options.layout = value<std::string>(object, "layout", file);
    options.start = value<std::string>(object, "start", file);
    options.tokens = value<int64_t>(object, "tokens", file);
  }
  if (object.contains("blocks")) {
    options.blocks = value<int64_t>(object, "blocks", file);
    options.block_size = value<int64_t>(object, "block_size", file);
    options.constraint = value<double>(object, "constraint", file);
  }
  if (object.contains("sharing")) options.sharing = value<std::string>(object, "sharing", file);
  options.first_layer = value<int>(object, "first_layer", file);
  options.last_layer = value<int>(object, "last_layer", file);
  if (object.contains("parts"))
    for (const json& part : value<json::array_t>(object, "parts", file))
      options.parts.push_back(options_from_json(part, file));
  return options;
}

LoadedBundle load_adapter(const std::string& folder) {
  require_adapter_folder(folder);
  // A folder that was exported for PEFT has a manifest and no record.
  const bool ours = has(folder, kProvenance), sealed = has(folder, kManifestFile);
  if (ours && !sealed)
    fail(folder, cat("is damaged: ", kManifestFile, " is missing"), "fetch the folder again",
         "E-ADAPTER-DAMAGED");
  if (sealed) require_undamaged(folder);

  const PeftConfig config =
      peft_config_from_json(read_json(in(folder, kConfig), FileKind::model), in(folder, kConfig));
  const char* weights = !ours && !has(folder, kTensors) ? kTorchTensors : kTensors;
  if (!has(folder, weights))
    fail(folder, cat(kTensors, " is missing"), "fetch the folder again, with its tensors");
  // Not in the braces below: where an exception leaves them, GCC 12 destroys members not yet made.
  WeightsFile tensors = WeightsFile::open(in(folder, weights));
  LoadedBundle out{.folder = folder,
                   .bundle = {},
                   .tensors = std::move(tensors),
                   .saved = {},
                   .recorded = true,
                   .config = config,
                   .baseline_tensors = {}};
  if (ours)
    read_record(folder, config, out);
  else
    infer_record(config, out);
  read_labels(folder, out.bundle);
  if (has(folder, kGenes)) out.bundle.genes = read_genes(in(folder, kGenes));
  out.bundle.preprocess = object_of(folder, kPreprocess);
  out.bundle.metrics = object_of(folder, kMetrics);
  if (has(folder, kBaselines)) {
    const Safetensors file = Safetensors::open(in(folder, kBaselines));
    for (const TensorInfo& info : file.tensors()) {
      out.baseline_tensors.push_back(file.tensor(info.name));
      out.bundle.baselines.push_back(
          {info.name, std::as_const(out.baseline_tensors.back()).view()});
    }
  }
  return out;
}

std::vector<FileCheck> verify_adapter(const std::string& folder) {
  require_adapter_folder(folder);
  if (!has(folder, kManifestFile))
    fail(folder, cat("cannot be checked: ", kManifestFile, " is missing"),
         "PEFT writes none; load the adapter to check its tensors");
  std::vector<FileCheck> checks = check_manifest(folder);
  for (FileCheck& check : checks) {
    if (!check.ok()) continue;
    try {  // a file may be as it was written, and still be no good
      if (check.file.ends_with(".json")) read_json(in(folder, check.file.c_str()), FileKind::model);
      if (check.file.ends_with(".safetensors")) Safetensors::open(in(folder, check.file.c_str()));
    } catch (const FileError& error) {
      check.fault = error.what();
    }
  }
  return checks;
}

}  // namespace scgraft
