// SPDX-License-Identifier: Apache-2.0
#include "adapters/peft_export.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>

#include "adapters/peft_tensors.h"
#include "adapters/prefix_tuning.h"
#include "adapters/store_files.h"
#include "io/file_error.h"
#include "io/json.h"
#include "io/output_folder.h"
#include "io/text.h"

namespace scgraft {
namespace {

using namespace adapter_files;

constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight", kU = ".hra_u",
                           kR = ".oft_R.weight";
// Backbones whose packed projection is a linear layer in the published code. That of torch's
// MultiheadAttention, as scFoundation has it, is a bare tensor.
constexpr std::array<std::string_view, 1> kPackedLinears = {"scgpt"};

[[noreturn]] void fail(const LoadedBundle& loaded, const std::string& message) {
  throw_file_error(FileKind::model, loaded.folder, cat("cannot be exported: ", message),
                   "E-ADAPTER-EXPORT",
                   "scgraft adapter merge writes a whole model, of adapters that can be merged");
}

// The pairs of one packed module.
struct Packed {
  std::array<std::optional<Tensor>, 3> a, b;
};

// A [n r, in], the pairs' one below the other; B [3 out, n r], a block for each.
std::pair<Tensor, Tensor> pack(const Packed& packed) {
  int64_t rank = 0, pairs = 0, in = 0, out = 0;
  for (size_t part = 0; part < 3; ++part) {
    if (!packed.a[part]) continue;
    ++pairs;
    rank = packed.a[part]->dim(0);
    in = packed.a[part]->dim(1);
    out = packed.b[part]->dim(0);
  }
  Tensor a({pairs * rank, in}, DType::f32), b({3 * out, pairs * rank}, DType::f32);
  const auto all_a = a.as<float, 2>(), all_b = b.as<float, 2>();
  std::fill_n(b.as<float>(), b.numel(), 0.f);
  int64_t row = 0;
  for (int64_t part = 0; part < 3; ++part) {
    const auto at = static_cast<size_t>(part);
    if (!packed.a[at]) continue;
    const auto one_a = std::as_const(*packed.a[at]).as<float, 2>();
    const auto one_b = std::as_const(*packed.b[at]).as<float, 2>();
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t j = 0; j < in; ++j) all_a(row + r, j) = one_a(r, j);
      for (int64_t i = 0; i < out; ++i) all_b(part * out + i, row + r) = one_b(i, r);
    }
    row += rank;
  }
  return {std::move(a), std::move(b)};
}

std::string_view ending(const std::string& name) {
  for (const std::string_view end : {kA, kB, kU, kR})
    if (name.ends_with(end)) return end;
  return {};
}

bool is_in(const std::vector<std::string>& modules, const std::string& parameter) {
  return std::any_of(modules.begin(), modules.end(), [&](const std::string& module) {
    return parameter.starts_with(module + ".");
  });
}

}  // namespace

void export_peft(const LoadedBundle& loaded, const std::string& folder, Overwrite overwrite) {
  PeftConfig config = loaded.config;
  if (!loaded.recorded) fail(loaded, "PEFT wrote it, and opens it as it is");
  const bool prompt = config.kind == "prefix_tuning" && config.every_layer;  // as PEFT has it
  if (!prompt && config.kind != "lora" && config.kind != "hra" && config.kind != "oft")
    fail(loaded, config.kind.empty()
                     ? "it holds trained modules and no adapter, for which PEFT has no type"
                     : cat("PEFT has no type for adapters of kind ", config.kind,
                           config.kind == "prefix_tuning" ? " in some of the layers" : ""));
  std::vector<Tensor> owned;
  std::map<std::string, Packed> packed;
  std::vector<NamedTensor> tensors;
  config.target_modules.clear();
  // Layers and not what holds them: PEFT 0.21 merges HRA only beside modules that have a weight.
  std::set<std::string> innermost;
  bool others = false;
  for (const TensorInfo& info : loaded.tensors.tensors()) {
    const Tensor& tensor = owned.emplace_back(loaded.tensors.tensor(info.name));
    const std::string wrapped = trained_key(config.kind, "");
    const std::string name = info.name.substr(std::min(wrapped.size(), info.name.size()));
    const std::string_view end = ending(name);
    if (info.name == kPromptEmbeddings) {
      tensors.push_back({info.name, tensor.view()});
      continue;
    }
    if (end.empty()) {
      if (!is_in(config.modules_to_save, name))
        fail(loaded, cat(escaped(name), " was trained by itself; PEFT saves whole modules"));
      innermost.insert(name.substr(0, name.rfind('.')));
      tensors.push_back({info.name, tensor.view()});
      continue;
    }
    const std::string path = name.substr(0, name.size() - end.size());
    const PackedPlace place = packed_place(path);
    if (place.part >= 0) {
      if (end == kU || end == kR)
        fail(loaded, cat(escaped(path), " is turned by itself, PEFT has that for ",
                         escaped(place.module), " as a whole"));
      if (std::find(kPackedLinears.begin(), kPackedLinears.end(), loaded.bundle.base_kind) ==
          kPackedLinears.end())
        fail(loaded, cat(escaped(path), " is part of a tensor in the published code of ",
                         loaded.bundle.base_kind, ", and no module that PEFT can wrap"));
      Packed& one = packed[place.module];
      (end == kA ? one.a : one.b)[static_cast<size_t>(place.part)] = tensor.converted(DType::f32);
      continue;
    }
    others = true;
    if (end != kB) config.target_modules.push_back(path);
    tensors.push_back({info.name, tensor.view()});
  }
  for (const auto& [module, pairs] : packed) {
    auto [a, b] = pack(pairs);
    const int64_t rank = a.dim(0);
    // The scale alpha / r stays what it is.
    const double alpha =
        config.alpha * static_cast<double>(rank) / static_cast<double>(loaded.config.rank);
    if (others) {
      config.ranks[std::string(kPackedModule)] = rank;
      config.alphas[std::string(kPackedModule)] = alpha;
    } else {
      config.rank = rank;
    }
    config.target_modules.push_back(module);
    tensors.push_back(
        {cat(kWrapped, module, kA), std::as_const(owned.emplace_back(std::move(a))).view()});
    tensors.push_back(
        {cat(kWrapped, module, kB), std::as_const(owned.emplace_back(std::move(b))).view()});
  }
  if (!packed.empty() && !others)
    config.alpha *= static_cast<double>(config.rank) / static_cast<double>(loaded.config.rank);
  config.modules_to_save.assign(innermost.begin(), innermost.end());
  std::sort(config.target_modules.begin(), config.target_modules.end());

  OutputFolder out(folder, overwrite);
  write_json(out / kConfig, to_json(config), Overwrite::refuse);
  write_safetensors(out / kTensors, std::move(tensors), {}, Overwrite::refuse);
  out.commit();
}

}  // namespace scgraft
