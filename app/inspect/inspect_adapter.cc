// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "adapters/store.h"
#include "app/inspect/inspect.h"
#include "app/logging.h"
#include "app/nearest.h"
#include "io/text.h"

namespace scgraft {
namespace {

using nlohmann::json;

std::string first_of(const std::vector<std::string>& words, size_t count) {
  std::vector<std::string> few(
      words.begin(), words.begin() + static_cast<ptrdiff_t>(std::min(words.size(), count)));
  for (std::string& word : few) word = escaped(word, 40);
  return joined(few) + (words.size() > count ? fmt::format(", ... ({})", words.size()) : "");
}

// Scalar metrics on one line.
std::string brief(const json& metrics) {
  std::string text;
  for (const auto& [name, value] : metrics.items())
    if (value.is_number())
      text += fmt::format("{}{} {:.4g}", text.empty() ? "" : ", ", name, value.get<double>());
  return text;
}

// One for each kind of a union.
std::vector<AdapterOptions> parts_of(const AdapterOptions& options) {
  if (!options.parts.empty()) return options.parts;
  std::vector<AdapterOptions> parts;
  for (size_t begin = 0; begin <= options.type.size();) {
    const size_t end = std::min(options.type.find('+', begin), options.type.size());
    parts.push_back(options);
    parts.back().type = options.type.substr(begin, end - begin);
    begin = end + 1;
  }
  return parts;
}

// The options that concern a kind.
std::string settings_of(const AdapterOptions& o) {
  std::string text = o.type;
  if (o.type == "lora")
    text += fmt::format(": r {}, alpha {:g}, on {}", o.rank, o.alpha, joined(o.targets));
  if (o.type == "hra") text += fmt::format(": r {}, on {}", o.rank, joined(o.targets));
  if (o.type == "oft") {
    text += o.block_size > 0 ? fmt::format(": blocks of {}", o.block_size)
                             : fmt::format(": {} blocks", o.blocks);
    if (o.constraint > 0) text += fmt::format(", within {:g}", o.constraint);
    text += fmt::format(", on {}", joined(o.targets));
  }
  if (o.type == "encoder") text += fmt::format(": width {:g}, layout {}", o.width, o.layout);
  if (o.type == "token") return text + fmt::format(": width {:g}", o.width);
  if (o.type == "prefix_tuning") text += fmt::format(": {} keys and values", o.tokens);
  if (o.type == "prefix")
    text += fmt::format(": {} rows{}", o.tokens, o.sharing == "layers" ? ", the same in all" : "");
  return text + fmt::format(", layers {} to {}", o.first_layer, o.last_layer);
}

}  // namespace

void inspect_adapter(Session& session, const std::string& path) {
  const auto timer = session.time("io");
  const LoadedBundle loaded = load_adapter(path);
  const AdapterBundle& bundle = loaded.bundle;
  const AdapterOptions& options = bundle.options;
  int64_t parameters = 0;
  for (const TensorInfo& info : loaded.tensors.tensors()) parameters += info.numel();

  json& result = session.result();
  result = {{"kind", "adapter"},
            {"type", bundle.has_adapter ? json(options.type) : json()},
            {"base",
             {{"path", bundle.base_path},
              {"fingerprint", bundle.base_fingerprint},
              {"kind", bundle.base_kind}}},
            {"labels", bundle.labels},
            {"label_counts", bundle.label_counts},
            {"parameters", parameters},
            {"tensors", static_cast<int64_t>(loaded.tensors.tensors().size())},
            {"trained", loaded.saved},
            {"genes", static_cast<int64_t>(bundle.genes.size())},
            {"metrics", bundle.metrics},
            {"preprocess", bundle.preprocess},
            {"recorded", loaded.recorded}};
  std::string text = cat(escaped(path), ": adapter\n");
  if (bundle.has_adapter) {
    result["options"] = {{"r", options.rank},
                         {"lora_alpha", options.alpha},
                         {"lora_dropout", options.dropout},
                         {"target_modules", options.targets},
                         {"blocks", options.blocks},
                         {"block_size", options.block_size},
                         {"constraint", options.constraint},
                         {"width", options.width},
                         {"layout", options.layout},
                         {"tokens", options.tokens},
                         {"sharing", options.sharing},
                         {"first_layer", options.first_layer},
                         {"last_layer", options.last_layer}};
    text += fmt::format("  type        {}\n", options.type);
    for (const AdapterOptions& part : parts_of(options))
      text += fmt::format("              {}\n", settings_of(part));
  } else {
    text += "  type        none: fully trained tensors only\n";
  }
  text +=
      fmt::format("  parameters  {} in {} tensors\n", parameters, loaded.tensors.tensors().size());
  text += fmt::format(
      "  base        {} {}{}\n", bundle.base_kind, escaped(bundle.base_path),
      bundle.base_fingerprint.empty() ? "" : " (" + bundle.base_fingerprint.substr(0, 12) + ")");
  if (!bundle.labels.empty())
    text += fmt::format("  labels      {}: {}\n", bundle.labels.size(), first_of(bundle.labels, 8));
  if (!loaded.saved.empty()) text += fmt::format("  trained     {}\n", first_of(loaded.saved, 4));
  if (const std::string metrics = brief(bundle.metrics); !metrics.empty())
    text += fmt::format("  metrics     {}\n", metrics);
  session.print(printable(text));
}

}  // namespace scgraft
