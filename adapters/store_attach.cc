// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "adapters/store.h"
#include "adapters/store_files.h"
#include "io/file_error.h"
#include "io/text.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

using namespace adapter_files;

[[noreturn]] void fail(const LoadedBundle& loaded, const std::string& message,
                       const std::string& hint = {}, const char* code = "E-ADAPTER") {
  throw_file_error(FileKind::model, loaded.folder, message, code, hint);
}

std::string first_digits(const std::string& fingerprint) {
  return fingerprint.empty() ? "unknown" : escaped(fingerprint.substr(0, 12));
}

void check_base(const LoadedBundle& loaded, const Backbone& backbone,
                const std::string& fingerprint, bool allow_mismatch) {
  const AdapterBundle& b = loaded.bundle;
  if (!b.base_kind.empty() && b.base_kind != backbone.kind())
    fail(loaded,
         cat("was made for a backbone of kind ", escaped(b.base_kind), " (", escaped(b.base_path),
             "), this one is ", backbone.kind()),
         "load the backbone it names", "E-ADAPTER-BASE");
  if (!b.base_fingerprint.empty() && b.base_fingerprint == fingerprint) return;
  const std::string message =
      cat("was made for the backbone ", first_digits(b.base_fingerprint), " (",
          escaped(b.base_path), "), this one is ", first_digits(fingerprint));
  if (!allow_mismatch)
    fail(loaded, message,
         "load the backbone it names, or pass --allow-base-mismatch if the weights are the same",
         "E-ADAPTER-BASE");
  log_warning("W-ADAPTER-BASE", escaped(loaded.folder), ": ", message);
}

// The layers and projections for which a PEFT file has tensors. make_adapter() wants the same
// projections in a run of layers; the comparison of keys afterwards finds what is not so.
AdapterOptions inferred(const LoadedBundle& loaded, Backbone& backbone) {
  AdapterOptions options = loaded.bundle.options;
  const std::map<std::string, std::string> names = {{"attn.q", "q"},      {"attn.k", "k"},
                                                    {"attn.v", "v"},      {"attn.out", "out"},
                                                    {"ffn.in", "ffn_in"}, {"ffn.out", "ffn_out"}};
  const char* const first_tensor = options.type == "hra"   ? ".hra_u"
                                   : options.type == "oft" ? ".oft_R.weight"
                                                           : ".lora_A.weight";
  int first = backbone.layer_count(), last = -1;
  for (const std::string& site : backbone.linear_sites()) {
    if (!loaded.tensors.contains(cat(kWrapped, backbone.module_path(site), first_tensor))) continue;
    const size_t layer_at = site.find('.') + 1;
    const size_t dot = site.find('.', layer_at);
    const int layer = std::stoi(site.substr(layer_at, dot - layer_at));
    first = std::min(first, layer);
    last = std::max(last, layer);
    const auto name = names.find(site.substr(dot + 1));
    if (name != names.end() && std::find(options.targets.begin(), options.targets.end(),
                                         name->second) == options.targets.end())
      options.targets.push_back(name->second);
  }
  if (last < 0)
    fail(loaded, cat("has no tensor for any place of this ", backbone.kind(), " backbone"),
         "load the backbone it was made for", "E-ADAPTER-TENSOR");
  options.first_layer = first;
  options.last_layer = last;
  return options;
}

bool is_real(const TensorInfo& info) {
  return info.dtype == DType::f32 || info.dtype == DType::f64 || info.dtype == DType::bf16 ||
         info.dtype == DType::f16;
}

// Where each tensor of the file goes.
using Places = std::map<std::string, Parameter*>;

void check_tensors(const LoadedBundle& loaded, const Places& places) {
  std::vector<std::string> faults;
  std::set<std::string> present;
  for (const TensorInfo& info : loaded.tensors.tensors()) {
    present.insert(info.name);
    const auto place = places.find(info.name);
    if (place == places.end()) {
      faults.push_back(cat(escaped(info.name), " has no place"));
      continue;
    }
    const auto want = place->second->value.shape().dims();
    if (!std::equal(info.dims.begin(), info.dims.end(), want.begin(), want.end()))
      faults.push_back(cat(escaped(info.name), " is ", info.dims_text(), ", the backbone needs ",
                           place->second->value.shape()));
    else if (!is_real(info))
      faults.push_back(cat(escaped(info.name), " is of type ", escaped(info.dtype_name)));
  }
  for (const auto& [key, parameter] : places)
    if (!present.contains(key)) faults.push_back(cat(escaped(key), " is missing"));
  if (faults.empty()) return;
  std::string text;
  for (size_t i = 0; i < faults.size() && i < 5; ++i) text += (i ? "; " : "") + faults[i];
  if (faults.size() > 5) text += cat("; and ", faults.size() - 5, " more");
  fail(loaded, cat(faults.size(), " tensors do not fit this backbone: ", text),
       "load the backbone it was made for, with a head of as many classes as labels.json has",
       "E-ADAPTER-TENSOR");
}

// A parameter of a mapped checkpoint cannot be written: it gets memory of its own.
void fill(Parameter& parameter, const Tensor& tensor) {
  const DType dtype = parameter.value.dtype();
  if (parameter.value.is_shared())
    parameter.value = Tensor(tensor.shape(), dtype, parameter.value.device());
  const Tensor same = tensor.dtype() == dtype ? tensor.share() : tensor.converted(dtype);
  copy(same.view(), parameter.value.view());
}

// The backbone packs weights again only where an optimizer could have changed them, so these pass
// for trained ones for a moment.
void repack(Backbone& backbone, const std::vector<Parameter*>& changed) {
  std::vector<Parameter*> frozen;
  for (Parameter* p : changed)
    if (!p->trainable()) frozen.push_back(p);
  for (Parameter* p : frozen) p->grad = Tensor({0}, p->value.dtype());
  backbone.parameters_updated();
  freeze(frozen);
}

}  // namespace

std::unique_ptr<Adapter> attach_adapter(const LoadedBundle& loaded, Backbone& backbone,
                                        const std::string& backbone_fingerprint,
                                        bool allow_base_mismatch) {
  check_base(loaded, backbone, backbone_fingerprint, allow_base_mismatch);
  std::unique_ptr<Adapter> adapter;
  Places places;
  if (loaded.bundle.has_adapter) {
    try {
      adapter = make_adapter(loaded.recorded ? loaded.bundle.options : inferred(loaded, backbone),
                             backbone, 0);
    } catch (const ConfigError& error) {  // of a file, not of the user
      fail(loaded, error.what(), "load the backbone it was made for");
    }
    for (Parameter* p : adapter->parameters()) places[p->name] = p;
  }
  std::vector<Parameter*> trained;
  for (const std::string& name : loaded.saved) {
    Parameter* parameter = backbone.parameters().find(name);
    if (parameter == nullptr)
      fail(loaded, cat("holds the trained tensor ", escaped(name), ", which this backbone has not"),
           "load the backbone with the heads that were trained, and the classes of labels.json",
           "E-ADAPTER-TENSOR");
    trained.push_back(parameter);
    places[cat(kWrapped, name)] = parameter;
  }
  check_tensors(loaded, places);
  for (const auto& [key, parameter] : places) fill(*parameter, loaded.tensors.tensor(key));
  repack(backbone, trained);
  if (adapter) adapter->attach(backbone);
  return adapter;
}

}  // namespace scgraft
