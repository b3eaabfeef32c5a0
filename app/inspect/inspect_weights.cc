// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <map>

#include "app/inspect/inspect.h"
#include "app/logging.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/text.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool names_contain(const Checkpoint& file, std::string_view part) {
  for (const TensorInfo& info : file.tensors())
    if (info.name.find(part) != std::string::npos) return true;
  return false;
}

// The model family that the tensors' names belong to.
std::string kind_of(const Checkpoint& file) {
  if (file.contains("encoder.embedding.weight") &&
      names_contain(file, "transformer_encoder.layers"))
    return "scgpt";
  if (names_contain(file, "embeddings.word_embeddings.weight") &&
      names_contain(file, "encoder.layer.0.attention.self.query"))
    return "geneformer";
  // Before scBERT, whose layers are those of its decoder.
  if (names_contain(file, "token_emb.mlp2.weight")) return "scfoundation";
  if (names_contain(file, "performer.net.layers.0.0.fn.fast_attention")) return "scbert";
  return "unknown";
}

// Where a model's folder says its sizes, and under which keys; those of scFoundation are JSON
// pointers.
struct SizesFile {
  const char* model;
  const char* file;
  std::vector<std::pair<const char*, const char*>> keys;  // as shown, in the file
};
const SizesFile* sizes_file(const std::string& model) {
  static const std::vector<SizesFile> kFiles = {
      {"scgpt",
       "args.json",
       {{"layers", "nlayers"},
        {"width", "embsize"},
        {"heads", "nheads"},
        {"tokens", "max_seq_len"}}},
      {"geneformer",
       "config.json",
       {{"layers", "num_hidden_layers"},
        {"width", "hidden_size"},
        {"heads", "num_attention_heads"},
        {"vocabulary", "vocab_size"},
        {"tokens", "max_position_embeddings"}}},
      {"scbert",
       "config.json",
       {{"layers", "depth"}, {"width", "dim"}, {"heads", "heads"}, {"tokens", "max_seq_len"}}},
      {"scfoundation",
       "config.json",
       {{"layers", "/encoder/depth"},
        {"width", "/encoder/hidden_dim"},
        {"heads", "/encoder/heads"},
        {"tokens", "/seq_len"}}}};
  for (const SizesFile& file : kFiles)
    if (model == file.model) return &file;
  return nullptr;
}

// What a weights file says of its network's sizes itself, as scFoundation's do for each branch,
// laid out as its config.json would be; null when it says nothing.
json sizes_inside(const Checkpoint& file) {
  const std::string branch = file.section().substr(0, file.section().find('/'));
  const json::json_pointer at("/" + branch + "/config");
  if (branch.empty() || !file.values().contains(at)) return nullptr;
  const json& config = file.values()[at];
  const json::json_pointer sizes("/model_config/mae_autobin"), data("/dataset_config/rnaseq");
  if (!config.contains(sizes) || !config[sizes].is_object()) return nullptr;
  json flat = config[sizes];
  if (config.contains(data) && config[data].is_object()) flat.update(config[data]);
  return flat;
}

// How attention projections are stored: fused names of published checkpoints.
std::string layout_of(const Checkpoint& file) {
  if (names_contain(file, "self_attn._impl.Wqkv")) return "_impl.Wqkv";
  if (names_contain(file, "self_attn.Wqkv")) return "Wqkv";
  if (names_contain(file, "self_attn.in_proj_weight")) return "in_proj";
  return "other";
}

// Null for weights of a type that this program cannot read.
json fingerprint_of(const Checkpoint& file) {
  try {
    return file.fingerprint();
  } catch (const ModelError& error) {
    if (error.code() != "E-TENSOR-DTYPE" && error.code() != "E-TENSOR-RANK") throw;
    log_warning("W-FINGERPRINT", "no fingerprint: ", error.what());
    return nullptr;
  }
}

}  // namespace

void inspect_weights(Session& session, const std::string& path) {
  const auto timer = session.time("io");
  const Checkpoint file = open_checkpoint(path);
  int64_t parameters = 0, bytes = 0;
  std::map<std::string, int64_t> dtypes;
  for (const WeightsFile& part : file.files())
    bytes += static_cast<int64_t>(fs::file_size(part.path()));
  for (const TensorInfo& info : file.tensors()) {
    parameters += info.numel();
    ++dtypes[info.dtype ? std::string(name_of(*info.dtype)) : info.dtype_name];
  }
  json& result = session.result();
  result = {{"kind", "checkpoint"},      {"model", kind_of(file)},
            {"file", file.file()},       {"section", file.section()},
            {"layout", layout_of(file)}, {"tensors", static_cast<int64_t>(file.tensors().size())},
            {"parameters", parameters},  {"bytes", bytes},
            {"dtypes", dtypes},          {"fingerprint", fingerprint_of(file)}};
  std::string sizes;
  const SizesFile* known = sizes_file(kind_of(file));
  json config = sizes_inside(file);
  if (config.is_null() && known != nullptr && fs::exists(fs::path(path) / known->file))
    config = read_json((fs::path(path) / known->file).string(), FileKind::model);
  if (known != nullptr && !config.is_null()) {
    result["config"] = config;
    for (const auto& [name, key] : known->keys) {
      const json::json_pointer at(*key == '/' ? std::string(key) : cat("/", key));
      if (!config.contains(at) || !config[at].is_number_integer()) continue;
      result["sizes"][name] = config[at];
      sizes += fmt::format("{}{} {}", sizes.empty() ? "" : ", ", name, config[at].get<int64_t>());
    }
  }

  std::string types;
  for (const auto& [type, count] : dtypes)
    types += fmt::format("{}{} x {}", types.empty() ? "" : ", ", count, type);
  std::string text = cat(escaped(path), ": weights of a model (", kind_of(file), ")\n");
  std::string part;
  if (!file.section().empty()) part = ", section " + escaped(file.section());
  if (file.files().size() > 1) part = cat(", of ", file.files().size(), " files");
  text += fmt::format("  file         {}{}\n", escaped(file.file()), part);
  text += fmt::format("  tensors      {} ({})\n", file.tensors().size(), types);
  text += fmt::format("  parameters   {}\n", parameters);
  if (!sizes.empty()) text += fmt::format("  sizes        {}\n", sizes);
  text += fmt::format("  layout       {}\n", layout_of(file));
  text += fmt::format("  fingerprint  {}\n", result["fingerprint"].is_null()
                                                 ? "none"
                                                 : result["fingerprint"].get<std::string>());
  if (fs::is_directory(path) && fs::exists(fs::path(path) / "metrics.jsonl")) {
    const RunSummary run = summary_of_run(path);
    result["run"] = run.values;
    text += run.text;
  }
  session.print(printable(text));
}

}  // namespace scgraft
