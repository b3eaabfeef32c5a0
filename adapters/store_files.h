// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "adapters/adapter.h"

// What the two halves of adapters/store.h, saving and loading, agree on.
namespace scgraft::adapter_files {

inline constexpr const char* kConfig = "adapter_config.json";
inline constexpr const char* kTensors = "adapter_model.safetensors";
inline constexpr const char* kTorchTensors = "adapter_model.bin";  // of PEFT alone
inline constexpr const char* kLabels = "labels.json";
inline constexpr const char* kGenes = "genes.tsv";
inline constexpr const char* kPreprocess = "preprocess.json";
inline constexpr const char* kMetrics = "metrics.json";
inline constexpr const char* kBaselines = "baselines.safetensors";
inline constexpr const char* kProvenance = "provenance.json";
inline constexpr const char* kCard = "README.md";

inline constexpr std::string_view kGenesHeader = "gene";
// In front of the keys of what sits beside a projection: the module that PEFT wraps.
inline constexpr std::string_view kWrapped = "base_model.model.";
// In front of the keys of fully trained tensors: prompt learning of PEFT wraps the model once less.
inline std::string trained_key(const std::string& adapter_type, const std::string& name) {
  return (adapter_type == "prefix_tuning" ? "base_model." : std::string(kWrapped)) + name;
}
// The section of provenance.json that is ours, and the version of its content.
inline constexpr const char* kSection = "scgraft";
inline constexpr int kFormat = 1;

nlohmann::json to_json(const AdapterOptions& options);
// Throws ModelError (E-ADAPTER) for a value of the wrong kind.
AdapterOptions options_from_json(const nlohmann::json& json, const std::string& file);

}  // namespace scgraft::adapter_files
