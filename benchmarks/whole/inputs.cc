// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <numeric>

#include "benchmarks/whole/whole.h"
#include "io/output.h"
#include "io/safetensors.h"
#include "runtime/random.h"

namespace scgraft::whole {
namespace {

constexpr int64_t kClasses = 12;

std::vector<int64_t> cell_lengths(const Arguments& arguments) {
  const int64_t cells = arguments.number("cells", 8), genes = arguments.number("genes", 600);
  std::vector<int64_t> lengths(static_cast<size_t>(cells), genes + 1);
  if (arguments.number("spread", 0) == 0) return lengths;
  // Log-normal with mean `genes` and half of that as standard deviation, at most 1,200 tokens.
  const double sigma = std::sqrt(std::log(1.25));
  const double mu = std::log(static_cast<double>(genes)) - sigma * sigma / 2;
  RandomStream random(3, RandomUse::simulate);
  for (int64_t& length : lengths) {
    const double radius = std::sqrt(-2 * std::log(1 - random.uniform()));
    const double normal = radius * std::cos(2 * std::numbers::pi * random.uniform());
    length = std::clamp<int64_t>(static_cast<int64_t>(std::exp(mu + sigma * normal)), 50, 1200);
  }
  return lengths;
}

// Distinct genes out of the first 20,000, bins 1 to 50 with small ones more frequent.
void write_cells(const Arguments& arguments, const ScgptModel& model, const std::string& path) {
  const std::vector<int64_t> lengths = cell_lengths(arguments);
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const auto cells = static_cast<int64_t>(lengths.size());
  Tensor genes({tokens}, DType::i32), values({tokens}, DType::f32),
      offsets({cells + 1}, DType::i64), labels({cells}, DType::i32);
  std::vector<int32_t> pool(static_cast<size_t>(std::min<int64_t>(20000, model.config.vocab - 3)));
  std::iota(pool.begin(), pool.end(), 0);
  int64_t at = 0;
  RandomStream random(4, RandomUse::simulate);
  for (int64_t cell = 0; cell < cells; ++cell) {
    offsets.as<int64_t>()[cell] = at;
    labels.as<int32_t>()[cell] = static_cast<int32_t>(random.below(kClasses));
    for (int64_t i = 0; i < lengths[static_cast<size_t>(cell)]; ++i, ++at) {
      const auto from = static_cast<size_t>(i);
      std::swap(pool[from], pool[from + random.below(pool.size() - from)]);
      const double u = random.uniform();
      genes.as<int32_t>()[at] = i == 0 ? model.cls_id() : pool[from];
      values.as<float>()[at] = i == 0 ? 0 : static_cast<float>(1 + std::floor(u * u * 50));
    }
  }
  offsets.as<int64_t>()[cells] = at;
  write_safetensors(path,
                    {{"genes", genes.view()},
                     {"values", values.view()},
                     {"offsets", offsets.view()},
                     {"labels", labels.view()}},
                    {}, Overwrite::replace);
}

AdapterOptions adapter_options() { return {.rank = 8, .alpha = 16, .targets = {"q", "v"}}; }

}  // namespace

nlohmann::json make_inputs(const Arguments& arguments) {
  const std::string folder = arguments.text("folder");
  make_directory(folder);
  ScgptModel model;
  model.config = ScgptConfig::preset(arguments.text("preset", "whole-human"));
  model.config.vocab = arguments.number("vocab", 60697);
  model.config.dropout = 0;
  for (int64_t i = 0; i < model.config.vocab - 3; ++i)
    model.vocabulary.append("GENE" + std::to_string(i));
  model.vocabulary.append_specials();
  model.network =
      std::make_unique<ScgptNetwork>(model.config, ScgptNetwork::Heads{}, scgpt_initialiser(1));
  save_scgpt(folder, model);

  // The up projections of LoRA start at zero, where the down projections have no gradient to
  // compare; these ones do not.
  ScgptNetwork head(model.config, {.decoder = false, .mvc = false, .classes = kClasses},
                    scgpt_initialiser(2));
  const auto adapter = make_adapter(adapter_options(), head, 3);
  std::vector<NamedTensor> start;
  for (Parameter* p : adapter->parameters()) {
    if (p->name.ends_with("lora_B.weight")) initialise_uniform(*p, 0.02, 5);
    start.push_back({p->name, std::as_const(p->value).view()});
  }
  for (const Parameter* p : head.classifier()->parameters())
    start.push_back({p->name, p->value.view()});
  write_safetensors(folder + "/start.safetensors", start, {}, Overwrite::replace);
  write_cells(arguments, model, folder + "/cells.safetensors");
  return {{"folder", folder}, {"parameters", model.network->parameters().numel()}};
}

Cells read_cells_file(const std::string& path) {
  const Safetensors file = Safetensors::open(path);
  const Tensor genes = file.tensor("genes"), values = file.tensor("values"),
               offsets = file.tensor("offsets"), labels = file.tensor("labels");
  TokenisedCells all;
  all.genes.assign(genes.as<int32_t>(), genes.as<int32_t>() + genes.numel());
  all.values.assign(values.as<float>(), values.as<float>() + values.numel());
  all.offsets.assign(offsets.as<int64_t>(), offsets.as<int64_t>() + offsets.numel());
  Cells cells;
  cells.store.append(all);
  cells.labels.assign(labels.as<int32_t>(), labels.as<int32_t>() + labels.numel());
  cells.classes = kClasses;
  return cells;
}

Grafted load_grafted(const Arguments& arguments, int64_t classes) {
  const std::string folder = arguments.text("folder");
  Grafted out;
  out.model = load_scgpt(folder, {.new_head_classes = classes, .pretraining_heads = false});
  ScgptNetwork& net = *out.model.network;
  net.set_precision(arguments.text("product", "f32") == "bf16" ? DType::bf16 : DType::f32);
  out.adapter = make_adapter(adapter_options(), net, 0);
  out.adapter->attach(net);
  out.trained = net.classifier()->parameters();
  for (Parameter* p : out.adapter->parameters()) out.trained.push_back(p);
  const Safetensors start = Safetensors::open(folder + "/start.safetensors");
  for (Parameter* p : out.trained) {
    const Tensor value = start.tensor(p->name);
    require(value.shape() == p->value.shape(), p->name, " has another shape in start.safetensors");
    std::memcpy(p->value.view().data(), value.view().data(), static_cast<size_t>(value.nbytes()));
  }
  return out;
}

}  // namespace scgraft::whole
