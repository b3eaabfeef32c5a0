// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numbers>
#include <numeric>

#include "benchmarks/whole/whole.h"
#include "io/json.h"
#include "io/output.h"
#include "io/safetensors.h"
#include "model/scgpt/cells.h"
#include "runtime/random.h"

namespace scgraft::whole {
namespace {

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

using FillCell = std::function<void(RandomStream&, std::span<int32_t>, std::span<float>)>;

void write_cells(const std::vector<int64_t>& lengths, const FillCell& fill_one,
                 const std::string& path) {
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const auto cells = static_cast<int64_t>(lengths.size());
  Tensor genes({tokens}, DType::i32), values({tokens}, DType::f32),
      offsets({cells + 1}, DType::i64), labels({cells}, DType::i32);
  int64_t at = 0;
  RandomStream random(4, RandomUse::simulate);
  for (int64_t cell = 0; cell < cells; ++cell) {
    offsets.as<int64_t>()[cell] = at;
    labels.as<int32_t>()[cell] = static_cast<int32_t>(random.below(kClasses));
    const auto length = static_cast<size_t>(lengths[static_cast<size_t>(cell)]);
    fill_one(random, {genes.as<int32_t>() + at, length}, {values.as<float>() + at, length});
    at += static_cast<int64_t>(length);
  }
  offsets.as<int64_t>()[cells] = at;
  write_safetensors(path,
                    {{"genes", genes.view()},
                     {"values", values.view()},
                     {"offsets", offsets.view()},
                     {"labels", labels.view()}},
                    {}, Overwrite::replace);
}

// Distinct genes out of the first 20,000, bins 1 to 50 with small ones more frequent.
FillCell scgpt_cells(const ScgptModel& model) {
  std::vector<int32_t> pool(static_cast<size_t>(std::min<int64_t>(20000, model.config.vocab - 3)));
  std::iota(pool.begin(), pool.end(), 0);
  return [pool, cls = model.cls_id()](RandomStream& random, std::span<int32_t> genes,
                                      std::span<float> values) mutable {
    for (size_t i = 0; i < genes.size(); ++i) {
      std::swap(pool[i], pool[i + random.below(pool.size() - i)]);
      const double u = random.uniform();
      genes[i] = i == 0 ? cls : pool[i];
      values[i] = i == 0 ? 0 : static_cast<float>(1 + std::floor(u * u * 50));
    }
  };
}

// What is trained, with values that have gradients everywhere: the up projections of LoRA start at
// zero, where the down projections have none to compare; these ones do not.
void write_start(Adapter& adapter, const std::vector<Parameter*>& head, const std::string& path) {
  std::vector<NamedTensor> start;
  for (Parameter* p : adapter.parameters()) {
    if (p->name.ends_with("lora_B.weight")) initialise_uniform(*p, 0.02, 5);
    start.push_back({p->name, std::as_const(p->value).view()});
  }
  for (const Parameter* p : head) start.push_back({p->name, p->value.view()});
  write_safetensors(path, start, {}, Overwrite::replace);
}

nlohmann::json make_scgpt(const Arguments& arguments, const std::string& folder) {
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
  ScgptNetwork head(model.config, {.decoder = false, .mvc = false, .classes = kClasses},
                    scgpt_initialiser(2));
  write_start(*make_adapter({}, head, 3), head.classifier()->parameters(),
              folder + "/start.safetensors");
  write_cells(cell_lengths(arguments), scgpt_cells(model), folder + "/cells.safetensors");
  return {{"folder", folder}, {"parameters", model.network->parameters().numel()}};
}

}  // namespace

nlohmann::json make_inputs(const Arguments& arguments) {
  const std::string folder = arguments.text("folder");
  make_directory(folder);
  const std::string name = arguments.text("model", "scgpt");
  if (name == "scgpt") return make_scgpt(arguments, folder);
  const std::vector<int64_t> lengths = cell_lengths(arguments);
  const nlohmann::json sizes = {{"model", name},
                                {"tiny", arguments.text("preset", "") == "tiny"},
                                {"length", lengths.front()}};
  Grafted grafted;
  make_network(grafted, sizes);
  write_json(folder + "/sizes.json", sizes, Overwrite::replace);
  std::vector<NamedTensor> weights;
  for (const Parameter* p : grafted.backbone->parameters().all())
    weights.push_back({p->name, p->value.view()});
  write_safetensors(folder + "/model.safetensors", std::move(weights), {}, Overwrite::replace);
  write_start(*make_adapter({}, *grafted.backbone, 3), grafted.network->head_parameters(),
              folder + "/start.safetensors");
  write_cells(
      lengths,
      [&](RandomStream& random, std::span<int32_t> genes, std::span<float> values) {
        fill_cell(sizes, random, genes, values);
      },
      folder + "/cells.safetensors");
  return {{"folder", folder}, {"parameters", grafted.backbone->parameters().numel()}};
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

Grafted load_network(const Arguments& arguments, int64_t classes) {
  const std::string folder = arguments.text("folder");
  Grafted out;
  if (std::filesystem::exists(folder + "/sizes.json")) {
    make_network(out, read_json(folder + "/sizes.json", FileKind::model));
  } else {
    ScgptModel model =
        load_scgpt(folder, {.new_head_classes = classes, .pretraining_heads = false});
    out.network = std::make_unique<ScgptCells>(*model.network);
    out.backbone = std::move(model.network);
    out.work = {model.config.layers, model.config.dim, model.config.dim, model.config.ffn};
  }
  out.backbone->set_precision(arguments.text("product", "f32") == "bf16" ? DType::bf16
                                                                         : DType::f32);
  return out;
}

Grafted load_grafted(const Arguments& arguments, int64_t classes) {
  Grafted out = load_network(arguments, classes);
  AdapterOptions options;
  options.type = arguments.text("adapter", "lora");
  out.backbone->set_recompute(arguments.text("activations", "keep") == "recompute");
  if (options.type == "all") {
    out.trained = out.backbone->encoder_parameters();
  } else if (options.type != "none") {
    out.adapter = make_adapter(options, *out.backbone, 0);
    out.adapter->attach(*out.backbone);
    out.trained = out.adapter->parameters();
  }
  for (Parameter* p : out.network->head_parameters()) out.trained.push_back(p);
  const Safetensors start = Safetensors::open(arguments.text("folder") + "/start.safetensors");
  for (Parameter* p : out.trained) {
    if (!start.contains(p->name)) continue;
    const Tensor value = start.tensor(p->name);
    require(value.shape() == p->value.shape(), p->name, " has another shape in start.safetensors");
    std::memcpy(p->value.view().data(), value.view().data(), static_cast<size_t>(value.nbytes()));
  }
  return out;
}

}  // namespace scgraft::whole
