// SPDX-License-Identifier: Apache-2.0
#include "adapters/model_card.h"

#include "io/text.h"
#include "runtime/cat.h"
#include "runtime/version.h"

namespace scgraft {
namespace {

using nlohmann::json;

// Text between quotes, for YAML, of which JSON strings are a part.
std::string quoted(const std::string& text) {
  return json(text).dump(-1, ' ', true, json::error_handler_t::replace);
}

// Text in a cell of a table.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : escaped(text)) {
    if (c == '|' || c == '<' || c == '`') out += '\\';
    out += c;
  }
  return out;
}

std::string method(const AdapterBundle& bundle) {
  if (!bundle.has_adapter) return "fully trained tensors, no adapter";
  const AdapterOptions& o = bundle.options;
  std::string targets;
  for (const std::string& t : o.targets) targets += (targets.empty() ? "" : ", ") + t;
  if (o.type == "hra")
    return cat("HRA of ", o.rank, " reflections, on ", targets, " of layers ", o.first_layer,
               " to ", o.last_layer);
  if (o.type == "oft")
    return cat("OFT with ",
               o.block_size > 0 ? cat("blocks of ", o.block_size) : cat(o.blocks, " blocks"),
               ", on ", targets, " of layers ", o.first_layer, " to ", o.last_layer);
  if (o.type != "lora") return o.type;
  return cat("LoRA of rank ", o.rank, ", alpha ", o.alpha, ", on ", targets, " of layers ",
             o.first_layer, " to ", o.last_layer);
}

}  // namespace

std::string model_card(const std::string& name, const AdapterBundle& bundle, int64_t parameters) {
  std::string text = "---\nlibrary_name: scgraft\n";
  text += cat("base_model: ", quoted(bundle.base_path), "\n");
  text += "tags:\n- single-cell\n- adapter\n";
  if (bundle.has_adapter) text += cat("- ", bundle.options.type, "\n");
  text += "license: unknown\n---\n\n";
  text += cat("# ", cell(name), "\n\n");
  text += cat("Made by scgraft ", kVersion, " for one backbone:\n\n");
  text += "| | |\n|---|---|\n";
  text += cat("| base | ", cell(bundle.base_path), " (", bundle.base_kind, ") |\n");
  text += cat("| fingerprint of its weights | ", cell(bundle.base_fingerprint), " |\n");
  text += cat("| method | ", method(bundle), " |\n");
  text += cat("| parameters | ", parameters, " |\n");
  if (!bundle.genes.empty()) text += cat("| genes | ", bundle.genes.size(), " |\n");
  if (!bundle.labels.empty()) {
    const bool counted = !bundle.label_counts.empty();
    text += cat("\n## Classes\n\n| class |", counted ? " cells |" : "", "\n|---|",
                counted ? "---:|" : "", "\n");
    for (size_t i = 0; i < bundle.labels.size(); ++i) {
      text += cat("| ", cell(bundle.labels[i]), " |");
      if (counted) text += cat(" ", bundle.label_counts[i], " |");
      text += "\n";
    }
  }
  if (bundle.metrics.is_object()) {
    std::string rows;
    for (const auto& [key, value] : bundle.metrics.items())
      if (value.is_number()) rows += cat("| ", cell(key), " | ", value.dump(), " |\n");
    if (!rows.empty()) text += "\n## Figures\n\n| | |\n|---|---:|\n" + rows;
  }
  text += "\n`sha256sum -c MANIFEST.sha256` checks the files.\n";
  return text;
}

}  // namespace scgraft
