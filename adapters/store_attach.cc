// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>

#include "adapters/peft_tensors.h"
#include "adapters/prefix_tuning.h"
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

bool is_real(const TensorInfo& info) {
  return info.dtype == DType::f32 || info.dtype == DType::f64 || info.dtype == DType::bf16 ||
         info.dtype == DType::f16;
}

void refuse(const LoadedBundle& loaded, const std::vector<std::string>& faults) {
  if (faults.empty()) return;
  std::string text;
  for (size_t i = 0; i < faults.size() && i < 5; ++i) text += (i ? "; " : "") + faults[i];
  if (faults.size() > 5) text += cat("; and ", faults.size() - 5, " more");
  fail(loaded, cat(faults.size(), " tensors do not fit this backbone: ", text),
       "load the backbone it was made for, with a head of as many classes as labels.json has",
       "E-ADAPTER-TENSOR");
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
  refuse(loaded, faults);
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
  // PEFT's prefix-tuning has one tensor, for all layers, whatever modules are called.
  const bool by_name = loaded.recorded || loaded.config.kind == "prefix_tuning";
  PeftTensors theirs;
  if (!by_name) {
    theirs = place_peft_tensors(loaded, backbone);
    refuse(loaded, theirs.faults);
  }
  std::unique_ptr<Adapter> adapter;
  Places places;
  Parameter prompt{std::string(kPromptEmbeddings), {}, {}};
  if (loaded.bundle.has_adapter) {
    try {
      adapter = make_adapter(by_name ? loaded.bundle.options : theirs.options, backbone, 0);
    } catch (const ConfigError& error) {  // of a file, not of the user
      fail(loaded, error.what(), "load the backbone it was made for");
    }
    const std::vector<Parameter*> parameters = adapter->parameters();
    for (Parameter* p : parameters) places[p->name] = p;
    if (loaded.bundle.options.type == "prefix_tuning" &&
        loaded.tensors.contains(std::string(kPromptEmbeddings))) {
      prompt.value = prompt_embeddings(parameters);
      places = {{prompt.name, &prompt}};
    }
  }
  std::vector<Parameter*> trained;
  if (by_name) {
    for (const std::string& name : loaded.saved) {
      Parameter* parameter = backbone.parameters().find(name);
      if (parameter == nullptr)
        fail(loaded,
             cat("holds the trained tensor ", escaped(name), ", which this backbone has not"),
             "load the backbone with the heads that were trained, and the classes of labels.json",
             "E-ADAPTER-TENSOR");
      trained.push_back(parameter);
      places[trained_key(loaded.bundle.has_adapter ? loaded.bundle.options.type : "", name)] =
          parameter;
    }
    check_tensors(loaded, places);
    for (const auto& [key, parameter] : places) fill(*parameter, loaded.tensors.tensor(key));
    if (!prompt.value.empty()) set_prompt_embeddings(prompt.value, adapter->parameters());
  } else {
    for (const auto& [name, tensor] : theirs.adapter) fill(*places.at(name), tensor);
    for (const auto& [name, key] : theirs.trained) {
      trained.push_back(backbone.parameters().find(name));
      fill(*trained.back(), loaded.tensors.tensor(key));
    }
  }
  repack(backbone, trained);
  if (adapter) adapter->attach(backbone);
  return adapter;
}

}  // namespace scgraft
