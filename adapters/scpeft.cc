// SPDX-License-Identifier: Apache-2.0
#include "adapters/scpeft.h"

namespace scgraft {
namespace {

[[noreturn]] void fail(const Checkpoint& file, const std::string& message) {
  ModelError error(cat(file.file(), ": ", message), "E-SCPEFT");
  error.set_where(file.file());
  throw error;
}

// Layers that carry the adapter, as the first and last of a run.
std::pair<int, int> layer_range(const nlohmann::json& config, const Checkpoint& file, int layers) {
  int first = -1;
  int last = -1;
  if (!config.contains("adapter_layer_conf")) {  // the default of the original: the lower half
    first = 0;
    last = layers / 2 - 1;
  } else {
    const auto& flags = config["adapter_layer_conf"];
    if (!flags.is_array() || static_cast<int>(flags.size()) > layers)
      fail(file, cat("adapter_layer_conf must list at most ", layers, " layers"));
    for (int i = 0; i < static_cast<int>(flags.size()); ++i) {
      const auto& flag = flags[static_cast<size_t>(i)];
      if (flag.is_boolean() ? !flag.get<bool>() : flag != 1) continue;
      if (first < 0) first = i;
      if (last >= 0 && i != last + 1)
        fail(file, "adapter_layer_conf leaves out layers in the middle; a run of layers is needed");
      last = i;
    }
  }
  if (first < 0) fail(file, "adapter_layer_conf switches every layer off");
  return {first, last};
}

int64_t number(const nlohmann::json& config, const char* key, int64_t otherwise) {
  return config.contains(key) && config[key].is_number() ? config[key].get<int64_t>() : otherwise;
}

void copy_rows(const Tensor& from, int64_t begin, Parameter& to, const Checkpoint& file,
               const std::string& name) {
  const Shape& want = to.value.shape();
  if (from.rank() != 2 || from.dim(1) != want[1] || begin + want[0] > from.dim(0))
    fail(file, cat(name, " is ", from.shape(), ", rows ", begin, " to ", begin + want[0],
                   " of width ", want[1], " were wanted"));
  const Tensor same = from.converted(to.value.dtype());
  copy(same.view().rows(begin, begin + want[0]), to.value.view());
}

}  // namespace

bool is_scpeft_tensor(const std::string& name) {
  return name.find(".lora_A") != std::string::npos || name.find(".lora_B") != std::string::npos;
}

ScpeftAdapter read_scpeft_adapter(const nlohmann::json& config, const Checkpoint& file,
                                  Backbone& backbone) {
  ScpeftAdapter out;
  if (!config.is_object() || !config.contains("peft_type"))
    fail(file, "peft_config.json has no peft_type");
  const auto& type = config["peft_type"];
  if (type == false || type.is_null()) return out;
  if (type != "LORA")
    fail(file, cat("peft_config.json asks for ", type.dump(), "; this version reads LORA"));

  AdapterOptions options;
  options.type = "lora";
  options.rank = number(config, "r", 8);
  options.alpha = static_cast<double>(number(config, "lora_alpha", 1));
  options.targets = {"q", "v"};
  std::tie(options.first_layer, options.last_layer) =
      layer_range(config, file, backbone.layer_count());
  out.adapter = make_adapter(options, backbone, 0);

  std::map<std::string, Parameter*> ours;
  for (Parameter* p : out.adapter->parameters()) ours[p->name] = p;
  for (int layer = options.first_layer; layer <= options.last_layer; ++layer) {
    const std::string base = cat("transformer_encoder.layers.", layer, ".self_attn.");
    for (const char* side : {"lora_A", "lora_B"}) {
      const std::string name = cat(base, "Wqkv.", side);
      const Tensor& packed = file.tensor(name);
      int64_t row = 0;
      for (const char* projection : {"q", "v"}) {
        Parameter* p = ours.at(cat(
            "base_model.model.", backbone.module_path(cat("layers.", layer, ".attn.", projection)),
            ".", side, ".weight"));
        copy_rows(packed, row, *p, file, name);
        row += p->value.dim(0);
        out.packed[name].push_back(p);
      }
      if (row != packed.dim(0))
        fail(file, cat(name, " has ", packed.dim(0), " rows, ", row, " were wanted"));
    }
    out.trained_with_it.push_back(base + "in_proj_bias");
  }
  return out;
}

}  // namespace scgraft
