// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "adapters/store.h"
#include "io/json.h"
#include "tests/adapters/tiny_backbone.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {

inline std::vector<Parameter*> head_of(ScgptNetwork& network) {
  std::vector<Parameter*> out;
  for (Parameter* p : network.parameters().all())
    if (p->name.starts_with("cls_decoder.")) out.push_back(p);
  return out;
}

inline void set_values(const std::vector<Parameter*>& parameters, float start) {
  for (Parameter* p : parameters)
    for (int64_t i = 0; i < p->value.numel(); ++i)
      p->value.as<float>()[i] = std::sin(start += 0.1f);
}

// A bundle with something in every file, to be saved under path().
class StoreTest : public ::testing::Test {
 protected:
  StoreTest() {
    AdapterOptions options;
    options.rank = 2;
    options.alpha = 5;
    options.targets = {"v", "q"};
    adapter_ = make_adapter(options, *network_, 3);
    set_values(adapter_->parameters(), 0);
    bundle_.base_path = "models/tiny \"one\"";
    bundle_.base_fingerprint = std::string(64, 'a');
    bundle_.labels = {"B cell", "T cell | CD8+", "na\xc3\xafve"};
    bundle_.label_counts = {10, 20, 30};
    bundle_.labels_extra = {{"temperature", 1.5}};
    bundle_.preprocess = {{"n_bins", 51}};
    bundle_.metrics = {{"accuracy", 0.75}};
    bundle_.provenance = {{"seed", 7}};
    bundle_.genes = {"MT-CO1", "CD3E"};
    baseline_ = tensor_of({2, 2}, DType::f32, {1, 2, 3, 4});
    bundle_.baselines = {{"centroids", std::as_const(baseline_).view()}};
  }
  void save(const std::string& folder, Overwrite overwrite = Overwrite::refuse) {
    const auto head = head_of(*network_);
    save_adapter(folder, bundle_, adapter_.get(), *network_, head, overwrite);
  }
  std::string path() const { return folder_ / "a"; }
  // Puts other tensors, or another file, into a folder that stays undamaged.
  void reseal() { write_manifest(path()); }
  void rewrite(const std::string& file, const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json value = read_json(path() + "/" + file, FileKind::model);
    change(value);
    write_json(path() + "/" + file, value, Overwrite::replace);
  }
  void rewrite_tensors(const std::function<void(std::map<std::string, Tensor>&)>& change) {
    const std::string file = path() + "/adapter_model.safetensors";
    std::map<std::string, Tensor> tensors;
    {
      const Safetensors old = Safetensors::open(file);
      for (const TensorInfo& info : old.tensors())
        tensors[info.name] = old.tensor(info.name).clone();
    }
    change(tensors);
    std::vector<NamedTensor> named;
    for (const auto& [name, tensor] : tensors) named.push_back({name, tensor.view()});
    write_safetensors(file, named, {}, Overwrite::replace);
  }

  TemporaryFolder folder_;
  std::unique_ptr<ScgptNetwork> network_ = tiny_network();
  std::unique_ptr<Adapter> adapter_;
  AdapterBundle bundle_;
  Tensor baseline_;
};

}  // namespace scgraft
