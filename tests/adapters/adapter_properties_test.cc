// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <deque>
#include <map>

#include "adapters/store.h"
#include "kernels/add.h"
#include "tests/adapters/tiny_backbone.h"
#include "tests/adapters/toy_backbone.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

struct Backbones {
  const char* name;
  std::unique_ptr<Backbone> (*make)(uint64_t seed, DType dtype);
};
constexpr Backbones kBackbones[] = {
    {"geneformer",
     [](uint64_t seed, DType dtype) -> std::unique_ptr<Backbone> {
       return tiny_geneformer(seed, dtype);
     }},
    {"prenorm",
     [](uint64_t seed, DType dtype) -> std::unique_ptr<Backbone> {
       return tiny_network(seed, 3, 16, dtype, true);
     }},
    {"scbert",
     [](uint64_t seed, DType dtype) -> std::unique_ptr<Backbone> {
       return tiny_scbert(seed, dtype);
     }},
    {"scfoundation",
     [](uint64_t seed, DType dtype) -> std::unique_ptr<Backbone> {
       return tiny_scfoundation(seed, dtype);
     }},
    {"scgpt",
     [](uint64_t seed, DType dtype) -> std::unique_ptr<Backbone> {
       return tiny_network(seed, 3, 16, dtype);
     }},
    {"toy",
     [](uint64_t seed, DType dtype) -> std::unique_ptr<Backbone> {
       return toy_backbone(seed, dtype);
     }},
};

// Every kind, what a kind can be laid out as, and unions.
std::vector<AdapterOptions> adapters() {
  std::vector<AdapterOptions> all;
  const auto add = [&](const std::string& type, const char* layout) -> AdapterOptions& {
    AdapterOptions o;
    o.type = type;
    o.rank = type == "hra" ? 4 : 3;  // which wants an even number
    o.alpha = 6;
    o.layout = layout;
    return all.emplace_back(o);
  };
  for (const std::string& kind : adapter_kinds()) add(kind, "norm");
  add("encoder", "parallel");
  add("encoder", "branch");
  add("encoder", "normed").start = "uniform";
  add("encoder", "residual").start = "uniform";
  add("prefix", "shared").sharing = "layers";
  add("oft", "bounded").constraint = 0.5;
  add("oft+encoder", "norm");
  add("prefix_tuning+lora", "norm");
  add("prefix_tuning+prefix", "norm");
  add("token+encoder", "norm");
  add("token+encoder+lora", "parallel");
  add("prefix+lora", "norm");
  add("token+lora", "norm");
  return all;
}

using Pair = std::tuple<Backbones, AdapterOptions>;

// Only layers with FAVOR+ attention have a residual that goes past a whole part.
bool has_place(const Backbones& backbone, const AdapterOptions& o) {
  return o.layout != "residual" || std::string(backbone.name) == "scbert";
}

std::vector<Pair> pairs() {
  std::vector<Pair> all;
  for (const Backbones& backbone : kBackbones)
    for (const AdapterOptions& o : adapters())
      if (has_place(backbone, o)) all.push_back({backbone, o});
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Pair>& info) {
  std::string name = cat(std::get<0>(info.param).name, "_", std::get<1>(info.param).type, "_",
                         std::get<1>(info.param).layout);
  std::replace(name.begin(), name.end(), '+', '_');
  return name;
}

// What every kind of adapter promises on every backbone (adapters/adapter.h, adapters/store.h).
class AdapterProperties : public ::testing::TestWithParam<Pair> {
 protected:
  AdapterOptions options() const { return std::get<1>(GetParam()); }
  std::unique_ptr<Backbone> backbone(uint64_t seed, DType dtype = DType::f32) const {
    return std::get<0>(GetParam()).make(seed, dtype);
  }
  // Whether the outputs stay as they were until it is trained (adapters/adapter.h).
  bool starts_as_identity() const {
    return options().start == "identity" && options().type.find("prefix") == std::string::npos;
  }
  bool at_tokens() const { return options().type.find("token") != std::string::npos; }
  // Trains it on the backbone until the outputs have moved well beyond rounding.
  void train(Adapter& adapter) {
    make_trainable(adapter.parameters());
    descend(*network_, cells_.batch(), adapter.parameters(), 4, 0.05);
    freeze(adapter.parameters());
  }
  Tensor output() { return encoded(*network_, cells_.batch()); }

  std::unique_ptr<Backbone> network_ = backbone(1);
  TinyBatch cells_;
};
INSTANTIATE_TEST_SUITE_P(Backbones, AdapterProperties, ::testing::ValuesIn(pairs()), name_of);

TEST_P(AdapterProperties, FreshLeavesEveryOutputAsItWas) {
  const Tensor before = output();
  const auto adapter = make_adapter(options(), *network_, 7);
  EXPECT_EQ(adapter->kind(), options().type);
  adapter->attach(*network_);
  if (starts_as_identity())
    expect_same_bits(output().view(), before.view());
  else  // rows of zeros are keys like others (adapters/prefix.h); layouts: adapters/encoder.h
    EXPECT_FALSE(same_bits(output(), before));
}

TEST_P(AdapterProperties, TrainingMovesTheOutputAndNoWeightOfTheBackbone) {
  const std::string weights = fingerprint(*network_);
  const auto adapter = make_adapter(options(), *network_, 7);
  adapter->attach(*network_);
  const Tensor before = output();
  train(*adapter);
  EXPECT_FALSE(same_bits(output(), before)) << "the test has trained nothing";
  EXPECT_EQ(fingerprint(*network_), weights);
}

// Of  sum(w * output), with values that are none of its start, against differences in f64.
TEST_P(AdapterProperties, GradientsAreDifferencesOfTheOutput) {
  const auto network = backbone(1, DType::f64);
  const auto adapter = make_adapter(options(), *network, 7);
  const std::vector<Parameter*> parameters = adapter->parameters();
  for (Parameter* p : parameters)
    for (int64_t i = 0; i < p->value.numel(); ++i)
      p->value.as<double>()[i] += 0.1 * std::sin(static_cast<double>(i) + 1);
  adapter->attach(*network);
  make_trainable(parameters);

  Context ctx;
  Tensor out({cells_.batch().tokens(), network->dim()}, DType::f64);
  const auto pass = [&](bool learn) {
    Arena::Scope scope(ctx.activations());
    const EncodeOptions options{
        .training = false, .save = learn, .rows = LayerRows::all, .tap = nullptr};
    network->parameters_updated();
    network->encode(ctx, cells_.batch(), options, out.view());
    Tensor w(out.shape(), DType::f64);
    double sum = 0;
    for (int64_t i = 0; i < w.numel(); ++i) {
      w.as<double>()[i] = std::cos(static_cast<double>(i));
      sum += w.as<double>()[i] * out.as<double>()[i];
    }
    if (learn) network->encode_backward(ctx, cells_.batch(), options, w.view());
    return sum;
  };
  pass(true);
  constexpr double kStep = 1e-6;  // few units of a relu turn on or off on the way
  for (Parameter* p : parameters) {
    double* value = p->value.as<double>();
    const double* gradient = p->grad.as<double>();
    double largest = 0;
    for (int64_t i = 0; i < p->grad.numel(); ++i)
      largest = std::max(largest, std::abs(gradient[i]));
    EXPECT_GT(largest, 0) << p->name;
    for (int64_t i = 0; i < p->value.numel(); i += std::max<int64_t>(1, p->value.numel() / 5)) {
      const double before = value[i];
      value[i] = before + kStep;
      const double above = pass(false);
      value[i] = before - kStep;
      const double below = pass(false);
      value[i] = before;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-6 * std::max(1.0, largest))
          << p->name << " " << i;
    }
  }
}

TEST_P(AdapterProperties, DetachedItIsGone) {
  const Tensor before = output();
  const auto adapter = make_adapter(options(), *network_, 7);
  adapter->attach(*network_);
  train(*adapter);
  const Tensor with = output();
  adapter->detach(*network_);
  expect_same_bits(output().view(), before.view());
  adapter->attach(*network_);
  expect_same_bits(output().view(), with.view());
}

TEST_P(AdapterProperties, MergedEqualsAttachedAndCanBeTakenBack) {
  const Tensor before = output();
  const std::string weights = fingerprint(*network_);
  const auto adapter = make_adapter(options(), *network_, 7);
  adapter->attach(*network_);
  train(*adapter);
  const Tensor with = output();
  if (!adapter->merge_into(*network_)) {
    // It says that it cannot, and has changed nothing.
    EXPECT_TRUE(options().type != "lora" && options().type != "hra" && options().type != "oft");
    EXPECT_EQ(fingerprint(*network_), weights);
    expect_same_bits(output().view(), with.view());
    return;
  }
  EXPECT_NE(fingerprint(*network_), weights);
  // Sums behind one result: projections, output and feed-forward, in two layers.
  expect_close(output().view(), with.view(), 2 * (16 + 16 + 16 + 24));
  adapter->unmerge_from(*network_);
  EXPECT_EQ(fingerprint(*network_), weights);
  expect_same_bits(output().view(), with.view());
  adapter->detach(*network_);
  expect_same_bits(output().view(), before.view());
}

TEST_P(AdapterProperties, SavedAndLoadedItComputesTheSame) {
  const auto adapter = make_adapter(options(), *network_, 7);
  adapter->attach(*network_);
  train(*adapter);
  const Tensor with = output();
  TemporaryFolder folder;
  AdapterBundle bundle;
  bundle.base_path = "models/tiny";
  bundle.base_fingerprint = fingerprint(*network_);
  save_adapter(folder / "a", bundle, adapter.get(), *network_, {}, Overwrite::refuse);

  const auto other = backbone(1);
  const Tensor without = encoded(*other, cells_.batch());  // packs the weights first
  const LoadedBundle loaded = load_adapter(folder / "a");
  const auto again = attach_adapter(loaded, *other, fingerprint(*other), false);
  EXPECT_EQ(again->kind(), options().type);
  const Tensor got = encoded(*other, cells_.batch());
  expect_same_bits(got.view(), with.view());
  again->detach(*other);
  expect_same_bits(encoded(*other, cells_.batch()).view(), without.view());
}

TEST_P(AdapterProperties, AnotherBackboneIsRefused) {
  const auto adapter = make_adapter(options(), *network_, 7);
  TemporaryFolder folder;
  AdapterBundle bundle;
  bundle.base_path = "models/tiny";
  bundle.base_fingerprint = fingerprint(*network_);
  save_adapter(folder / "a", bundle, adapter.get(), *network_, {}, Overwrite::refuse);
  const LoadedBundle loaded = load_adapter(folder / "a");

  const auto other = backbone(2);
  const Tensor before = encoded(*other, cells_.batch());
  const std::string theirs = fingerprint(*other);
  for (const std::string& part :
       {bundle.base_fingerprint.substr(0, 12), theirs.substr(0, 12), bundle.base_path})
    expect_model_error("E-ADAPTER-BASE", part,
                       [&] { attach_adapter(loaded, *other, theirs, false); });
  expect_same_bits(encoded(*other, cells_.batch()).view(), before.view());
  EXPECT_NE(attach_adapter(loaded, *other, theirs, true), nullptr);
}

TEST_P(AdapterProperties, OnlyTheLayersAskedForHaveIt) {
  AdapterOptions one = options();
  one.first_layer = one.last_layer = 1;
  const auto adapter = make_adapter(one, *network_, 7);
  const auto all = make_adapter(options(), *network_, 7);
  const auto in_layer = [&](Adapter& which, int layer) {
    const std::string path = network_->layer_path(layer) + ".";
    int64_t n = 0;
    for (const Parameter* p : which.parameters()) n += p->name.find(path) != std::string::npos;
    return n;
  };
  EXPECT_EQ(in_layer(*adapter, 0), 0);
  EXPECT_EQ(in_layer(*adapter, 1), in_layer(*all, 1));
  EXPECT_EQ(in_layer(*all, 0), in_layer(*all, 1));
  EXPECT_EQ(in_layer(*all, 0) == 0, options().type == "token" || options().sharing == "layers");
  adapter->attach(*network_);
  train(*adapter);

  // What goes into layer 1 is what it was.
  std::vector<Tensor> with, without;
  const auto tapped = [&](std::vector<Tensor>& out) {
    Context ctx;
    const Tap tap = [&](const std::string& name, ConstTensorView view) {
      if (name.find("layer0") == std::string::npos) return;
      Tensor copy(view.shape(), view.dtype());
      std::memcpy(copy.view().data(), view.data(), static_cast<size_t>(view.nbytes()));
      out.push_back(std::move(copy));
    };
    Tensor rows({cells_.batch().tokens(), network_->dim()}, DType::f32);
    network_->encode(ctx, cells_.batch(),
                     {.training = false, .save = false, .rows = LayerRows::all, .tap = &tap},
                     rows.view());
  };
  tapped(with);
  const Tensor moved = output();
  adapter->detach(*network_);
  tapped(without);
  ASSERT_FALSE(with.empty());
  ASSERT_EQ(with.size(), without.size());
  if (!at_tokens())
    for (size_t i = 0; i < with.size(); ++i) expect_same_bits(with[i].view(), without[i].view());
  EXPECT_FALSE(same_bits(moved, output()));
}

TEST_P(AdapterProperties, WhatDoesNotFitTheBackboneIsRefused) {
  for (const auto& [first, last] : std::vector<std::pair<int, int>>{{0, 2}, {-1, 1}, {1, 0}}) {
    AdapterOptions wrong = options();
    wrong.first_layer = first;
    wrong.last_layer = last;
    expect_file_error(ExitCode::usage, "E-CONFIG", "0 to 1",
                      [&] { make_adapter(wrong, *network_, 1); });
  }
}

TEST_P(AdapterProperties, ItsStartDependsOnTheSeedOnly) {
  const auto a = make_adapter(options(), *network_, 7);
  const auto b = make_adapter(options(), *network_, 7);
  const auto c = make_adapter(options(), *network_, 8);
  bool differs = false;
  for (size_t i = 0; i < a->parameters().size(); ++i) {
    EXPECT_EQ(a->parameters()[i]->name, b->parameters()[i]->name);
    EXPECT_TRUE(same_bits(a->parameters()[i]->value, b->parameters()[i]->value));
    differs = differs || !same_bits(a->parameters()[i]->value, c->parameters()[i]->value);
  }
  EXPECT_EQ(differs, options().type != "prefix" && options().type != "oft");  // which are zeros
}

// A new kind of adapter, as small as one can be: the rows between the two parts of each layer,
// times 1 + g. With a line in the table of adapters/registry.cc it would be one that users can
// name.
class ToyAdapter : public Adapter {
 public:
  explicit ToyAdapter(const Backbone& backbone, DType dtype) {
    for (int layer = 0; layer < backbone.layer_count(); ++layer) {
      Gate& gate = gates_.emplace_back();
      gate.site = cat("layers.", layer, ".mid");
      gate.g = &parameters_.add(backbone.layer_path(layer) + ".gate", Tensor({1}, dtype));
    }
  }
  std::string_view kind() const override { return "toy"; }
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override {
    for (Gate& gate : gates_) backbone.hidden_site(gate.site) = &gate;
  }
  void detach(Backbone& backbone) override {
    for (Gate& gate : gates_) backbone.hidden_site(gate.site) = nullptr;
  }
  std::vector<Parameter*> parameters() override { return parameters_.all(); }
  bool merge_into(Backbone&) override { return false; }
  void unmerge_from(Backbone&) override {}

 private:
  struct Gate : HiddenSite {
    std::string site;
    Parameter* g = nullptr;
    ConstTensorView x;

    void forward(Context& ctx, ConstTensorView rows, const Packing&, bool, TensorView y) override {
      x = rows;
      add(ctx, rows, rows, y, value());
    }
    bool trainable() const override { return g->trainable(); }
    void backward(Context& ctx, ConstTensorView dy, const Packing&, TensorView dx) override {
      if (!dx.empty()) add(ctx, dy, dy, dx, value());
      visit_real(x.dtype(), [&]<class T>(Type<T>) {
        for (int64_t i = 0; i < x.numel(); ++i) g->grad.as<T>()[0] += dy.as<T>()[i] * x.as<T>()[i];
      });
    }
    void parameters_updated() override {}
    double value() const { return values_of(std::as_const(g->value).view())[0]; }
  };
  AdapterOptions options_;
  ParameterSet parameters_;
  std::deque<Gate> gates_;
};

// One test for all backbones, none of which knows it.
TEST(AdapterKinds, AToyWorksOnEveryBackbone) {
  for (const Backbones& backbone : kBackbones) {
    SCOPED_TRACE(backbone.name);
    const auto network = backbone.make(1, DType::f64);
    const TinyBatch cells;
    Context ctx;
    Tensor before({cells.batch().tokens(), network->dim()}, DType::f64), out = before.clone();
    network->encode(ctx, cells.batch(), {}, before.view());
    ToyAdapter adapter(*network, DType::f64);
    adapter.attach(*network);
    network->encode(ctx, cells.batch(), {}, out.view());
    expect_same_bits(out.view(), before.view());

    make_trainable(adapter.parameters());
    const auto sum = [&](bool learn) {
      Arena::Scope scope(ctx.activations());
      const EncodeOptions options{.save = learn};
      network->encode(ctx, cells.batch(), options, out.view());
      Tensor w(out.shape(), DType::f64);
      double total = 0;
      for (int64_t i = 0; i < w.numel(); ++i) {
        w.as<double>()[i] = std::cos(static_cast<double>(i));
        total += w.as<double>()[i] * out.as<double>()[i];
      }
      if (learn) network->encode_backward(ctx, cells.batch(), options, w.view());
      return total;
    };
    sum(true);
    for (Parameter* p : adapter.parameters()) {
      p->value.as<double>()[0] = 1e-5;
      const double above = sum(false);
      p->value.as<double>()[0] = -1e-5;
      const double slope = (above - sum(false)) / 2e-5;
      p->value.as<double>()[0] = 0;
      EXPECT_NE(slope, 0) << p->name;
      EXPECT_NEAR(p->grad.as<double>()[0], slope, 1e-6 * std::max(1.0, std::abs(slope))) << p->name;
    }
    adapter.detach(*network);
    network->encode(ctx, cells.batch(), {}, out.view());
    expect_same_bits(out.view(), before.view());
  }
}

TEST(AdapterKinds, APlaceThatABackboneHasNotIsNamed) {
  const auto network = tiny_network();
  for (const char* type : {"encoder", "lora+encoder"}) {
    AdapterOptions options;
    options.type = type;
    options.layout = "residual";
    options.start = "uniform";
    const std::string before = fingerprint(*network);
    expect_file_error(ExitCode::usage, "E-SITE", "ffn.residual",
                      [&] { make_adapter(options, *network, 1)->attach(*network); });
    EXPECT_EQ(fingerprint(*network), before);
    EXPECT_EQ(network->linear_site("layers.0.attn.q").site(), nullptr) << type;
  }
}

TEST(AdapterKinds, ALayoutWithoutAnIdentityWantsAnotherStart) {
  const auto network = tiny_scbert();
  for (const char* layout : {"normed", "residual"}) {
    AdapterOptions options;
    options.type = "encoder";
    options.layout = layout;
    expect_file_error(ExitCode::usage, "E-CONFIG", "uniform",
                      [&] { make_adapter(options, *network, 1); });
  }
}

TEST(AdapterKinds, AnUnknownOneIsAnsweredWithTheList) {
  const auto network = tiny_network();
  AdapterOptions unknown;
  unknown.type = "lorra";
  for (const std::string& kind : adapter_kinds())
    expect_file_error(ExitCode::usage, "E-ADAPTER-TYPE", kind,
                      [&] { make_adapter(unknown, *network, 1); });
}

TEST(Hra, TargetsDecideWhereItIs) {
  const auto network = tiny_network();
  const std::vector<std::pair<std::string, std::string>> places = {
      {"k", "self_attn.k_proj"}, {"out", "self_attn.out_proj"}, {"ffn_out", "linear2"}};
  for (const auto& [target, path] : places) {
    AdapterOptions options;
    options.type = "hra";
    options.targets = {target};
    options.rank = 6;
    options.first_layer = options.last_layer = 1;
    const auto adapter = make_adapter(options, *network, 1);
    const auto parameters = adapter->parameters();
    ASSERT_EQ(parameters.size(), 1u);
    const Tensor& u = parameters[0]->value;
    EXPECT_EQ(parameters[0]->name,
              cat("base_model.model.transformer_encoder.layers.1.", path, ".hra_u"));
    EXPECT_EQ(u.shape(), (Shape{target == "ffn_out" ? 24 : 16, 6}));
    const auto columns = u.as<float, 2>();
    for (int64_t i = 0; i < u.dim(0); ++i)
      for (int64_t r = 0; r < 6; r += 2) {
        EXPECT_EQ(columns(i, r), columns(i, r + 1));
        EXPECT_LE(std::abs(columns(i, r)), 1 / std::sqrt(3.0f));
      }
  }
  AdapterOptions wrong;
  wrong.type = "hra";
  wrong.targets = {"gate"};
  expect_file_error(ExitCode::usage, "E-CONFIG", "ffn_out",
                    [&] { make_adapter(wrong, *network, 1); });
  for (const int64_t rank : {-2, 0, 3, 514}) {
    AdapterOptions odd;
    odd.type = "hra";
    odd.rank = rank;
    expect_file_error(ExitCode::usage, "E-CONFIG", "even", [&] { make_adapter(odd, *network, 1); });
  }
}

// y = W H_1 ... H_r x, reflection by reflection, at one site.
TEST(Hra, ReflectsTheInputOfTheWeight) {
  const auto network = tiny_network();
  AdapterOptions options;
  options.type = "hra";
  options.rank = 4;
  options.targets = {"ffn_in"};
  options.first_layer = options.last_layer = 1;
  const auto adapter = make_adapter(options, *network, 1);
  Tensor& u = adapter->parameters()[0]->value;
  for (int64_t i = 0; i < u.numel(); ++i)
    u.as<float>()[i] = std::cos(static_cast<float>(i * i) * 0.7f);
  Linear& site = network->linear_site("layers.1.ffn.in");
  Context ctx;
  Tensor x({4, 16}, DType::f32), turned({4, 16}, DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) x.as<float>()[i] = std::sin(static_cast<float>(i));
  const auto columns = std::as_const(u).as<float, 2>();
  for (int64_t t = 0; t < 4; ++t) {
    std::vector<double> row(16);
    for (int64_t i = 0; i < 16; ++i) row[static_cast<size_t>(i)] = x.as<float>()[t * 16 + i];
    for (int64_t r = 3; r >= 0; --r) {
      double along = 0, square = 0;
      for (int64_t i = 0; i < 16; ++i) {
        along += row[static_cast<size_t>(i)] * columns(i, r);
        square += static_cast<double>(columns(i, r)) * columns(i, r);
      }
      for (int64_t i = 0; i < 16; ++i)
        row[static_cast<size_t>(i)] -= 2 * along / square * columns(i, r);
    }
    for (int64_t i = 0; i < 16; ++i)
      turned.as<float>()[t * 16 + i] = static_cast<float>(row[static_cast<size_t>(i)]);
  }
  const std::vector<int32_t> offsets = {0, 4};
  const std::vector<int64_t> ids = {0};
  const Packing packing = Packing::over(offsets, ids);
  Tensor with({4, 24}, DType::f32), want({4, 24}, DType::f32);
  site.forward(ctx, std::as_const(turned).view(), packing, false, want.view());
  adapter->attach(*network);
  site.forward(ctx, std::as_const(x).view(), packing, false, with.view());
  expect_close(std::as_const(with).view(), std::as_const(want).view(), 16 * 4);
}

TEST(Hra, ATrainedWeightBesideItIsRefused) {
  const auto network = tiny_network();
  AdapterOptions options;
  options.type = "hra";
  const auto adapter = make_adapter(options, *network, 1);
  adapter->attach(*network);
  make_trainable(adapter->parameters());
  // One parameter behind q, k and v.
  make_trainable({network->linear_site("layers.1.attn.q").weight()});
  const TinyBatch cells;
  expect_error("layers.1.attn.q: an hra adapter needs a frozen weight",
               [&] { descend(*network, cells.batch(), adapter->parameters(), 1, 0.05); });
}

// (I - S) (I + S)^-1 of one block, by a series of (I + S)^-1 for a small S.
std::vector<double> rotation_of(const double* triangle, int64_t n) {
  const auto at = [n](int64_t i, int64_t j) { return static_cast<size_t>(i * n + j); };
  std::vector<double> s(static_cast<size_t>(n * n), 0.0), power(s), q(s);
  for (int64_t i = 0, next = 0; i < n; ++i) {
    power[at(i, i)] = q[at(i, i)] = 1;
    for (int64_t j = i + 1; j < n; ++j, ++next) {
      s[at(i, j)] = triangle[next];
      s[at(j, i)] = -triangle[next];
    }
  }
  for (int term = 1; term < 60; ++term) {  // Q = I - 2 S + 2 S^2 - ...
    std::vector<double> times(s.size(), 0.0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < n; ++k) times[at(i, j)] -= power[at(i, k)] * s[at(k, j)];
    power = times;
    for (size_t e = 0; e < q.size(); ++e) q[e] += 2 * power[e];
  }
  return q;
}

// y = W (x Q), block by block, at one site, and as its merged weight.
TEST(Oft, TurnsTheInputBlockByBlock) {
  for (const bool bounded : {false, true}) {
    const auto network = tiny_network();
    AdapterOptions options;
    options.type = "oft";
    options.targets = {"ffn_in"};
    options.first_layer = options.last_layer = 1;
    options.constraint = bounded ? 0.3 : 0;
    const auto adapter = make_adapter(options, *network, 1);
    ASSERT_EQ(adapter->parameters().size(), 1u);
    EXPECT_EQ(adapter->parameters()[0]->name,
              "base_model.model.transformer_encoder.layers.1.linear1.oft_R.weight");
    Tensor& skew = adapter->parameters()[0]->value;
    ASSERT_EQ(skew.shape(), (Shape{4, 6}));
    std::vector<double> values(24);
    for (int64_t b = 0; b < 4; ++b) {
      double square = 0;
      for (int64_t i = b * 6; i < b * 6 + 6; ++i) {
        const float v = 0.2f * std::cos(static_cast<float>(i * i) * 0.7f);
        skew.as<float>()[i] = v;
        values[static_cast<size_t>(i)] = v;
        square += 2 * static_cast<double>(v) * v;
      }
      const double most = 0.3 / 2;  // over the root of four blocks
      ASSERT_GT(std::sqrt(square), most);
      for (int64_t i = b * 6; bounded && i < b * 6 + 6; ++i)
        values[static_cast<size_t>(i)] *= most / std::sqrt(square) * (1 - 1e-5);
    }
    Tensor x({4, 16}, DType::f32), turned({4, 16}, DType::f32);
    for (int64_t i = 0; i < x.numel(); ++i) x.as<float>()[i] = std::sin(static_cast<float>(i));
    for (int64_t b = 0; b < 4; ++b) {
      const std::vector<double> q = rotation_of(values.data() + b * 6, 4);
      for (int64_t t = 0; t < 4; ++t)
        for (int64_t j = 0; j < 4; ++j) {
          double sum = 0;
          for (int64_t i = 0; i < 4; ++i)
            sum += x.as<float>()[t * 16 + b * 4 + i] * q[static_cast<size_t>(i * 4 + j)];
          turned.as<float>()[t * 16 + b * 4 + j] = static_cast<float>(sum);
        }
    }
    const std::vector<int32_t> offsets = {0, 4};
    const std::vector<int64_t> ids = {0};
    const Packing packing = Packing::over(offsets, ids);
    Context ctx;
    Linear& site = network->linear_site("layers.1.ffn.in");
    Tensor with({4, 24}, DType::f32), want({4, 24}, DType::f32);
    site.forward(ctx, std::as_const(turned).view(), packing, false, want.view());
    for (const bool merged : {true, false}) {  // a merge does not wait for a forward pass
      if (merged)
        adapter->merge_into(*network);
      else
        adapter->unmerge_from(*network);
      site.forward(ctx, std::as_const(x).view(), packing, false, with.view());
      expect_close(std::as_const(with).view(), std::as_const(want).view(), 16 * 4);
    }
    adapter->detach(*network);
  }
}

TEST(PrefixTuning, HasOneToSixtyFourKeys) {
  const auto network = tiny_network();
  AdapterOptions options;
  options.type = "prefix_tuning";
  for (const int64_t tokens : {0, 65}) {
    options.tokens = tokens;
    expect_file_error(ExitCode::usage, "E-CONFIG", "must be 1 to 64",
                      [&] { make_adapter(options, *network, 1); });
  }
}

// softmax over the keys of the adapter and of the cell, by hand, in one layer.
TEST(PrefixTuning, EveryQuerySeesItsKeysAndValues) {
  const auto network = tiny_network(1, 3, 16, DType::f64);
  AdapterOptions options;
  options.type = "prefix_tuning";
  options.tokens = 3;
  options.first_layer = options.last_layer = 0;
  const auto adapter = make_adapter(options, *network, 1);
  ASSERT_EQ(adapter->parameters().size(), 2u);
  for (Parameter* p : adapter->parameters())
    for (int64_t i = 0; i < p->value.numel(); ++i)
      p->value.as<double>()[i] = std::sin(static_cast<double>(i * i) + p->name.size());
  adapter->attach(*network);
  const TinyBatch cells;
  const Packing packing = cells.batch().packing();
  std::map<std::string, Tensor> taps;
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    taps[name] = Tensor(view.shape(), view.dtype());
    copy(view, taps[name].view());
  };
  Context ctx;
  Tensor out({packing.tokens(), 16}, DType::f64);
  network->encode(ctx, cells.batch(), {.tap = &tap}, out.view());
  const Tensor& x = taps.at("layer0_in");
  Tensor q(x.shape(), x.dtype()), k(q.shape(), x.dtype()), v(q.shape(), x.dtype());
  for (const auto& [name, to] : {std::pair<std::string, Tensor*>{"q", &q}, {"k", &k}, {"v", &v}})
    network->linear_site("layers.0.attn." + name)
        .forward(ctx, std::as_const(x).view(), packing, false, to->view());
  const int64_t heads = network->heads(), wide = 16 / heads;
  std::vector<double> want;
  for (int64_t cell = 0; cell < packing.cells(); ++cell)
    for (int64_t i = packing.begin(cell); i < packing.end(cell); ++i)
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> sum(static_cast<size_t>(wide), 0.0);
        double weights = 0;
        const auto see = [&](const double* key, const double* value) {
          double score = 0;
          for (int64_t c = 0; c < wide; ++c)
            score += q.as<double>()[i * 16 + h * wide + c] * key[h * wide + c];
          const double weight = std::exp(score / std::sqrt(static_cast<double>(wide)));
          weights += weight;
          for (int64_t c = 0; c < wide; ++c)
            sum[static_cast<size_t>(c)] += weight * value[h * wide + c];
        };
        for (int64_t t = 0; t < 3; ++t)
          see(adapter->parameters()[0]->value.as<double>() + t * 16,
              adapter->parameters()[1]->value.as<double>() + t * 16);
        for (int64_t j = packing.begin(cell); j < packing.end(cell); ++j)
          see(k.as<double>() + j * 16, v.as<double>() + j * 16);
        for (const double s : sum) want.push_back(s / weights);
      }
  expect_close(taps.at("layer0_attn_context").view(), want, 16);
  adapter->detach(*network);
}

// Behind past keys the tokens of a BERT are that much further on, if layer 0 has them.
TEST(PrefixTuning, TokensOfGeneformerMoveOn) {
  const auto network = tiny_geneformer(), moved = tiny_geneformer();
  constexpr int64_t kTokens = 3;
  Parameter* table = moved->parameters().find("bert.embeddings.position_embeddings.weight");
  ASSERT_NE(table, nullptr);
  const auto rows = table->value.as<float, 2>();
  for (int64_t r = 0; r + kTokens < rows.dim(0); ++r)
    std::copy_n(rows.row(r + kTokens), rows.dim(1), rows.row(r));
  const TinyBatch cells;
  const auto embeddings = [&](GeneformerNetwork& net) {
    Tensor got;
    const Tap tap = [&](const std::string& name, ConstTensorView view) {
      if (name != "embeddings") return;
      got = Tensor(view.shape(), view.dtype());
      copy(view, got.view());
    };
    Context ctx;
    Tensor out({cells.batch().tokens(), net.dim()}, DType::f32);
    net.encode(ctx, cells.batch(), {.tap = &tap}, out.view());
    return got;
  };
  AdapterOptions options;
  options.type = "prefix_tuning";
  options.tokens = kTokens;
  const Tensor before = embeddings(*network);
  const auto all = make_adapter(options, *network, 1);
  all->attach(*network);
  expect_same_bits(embeddings(*network).view(), embeddings(*moved).view());
  all->detach(*network);
  options.first_layer = 1;
  const auto second = make_adapter(options, *network, 1);
  second->attach(*network);
  expect_same_bits(embeddings(*network).view(), before.view());
  second->detach(*network);

  options.first_layer = 0;
  options.tokens = 14;  // of 16 positions, and the cells have ranks up to 4
  const auto many = make_adapter(options, *network, 1);
  many->attach(*network);
  expect_error("this model has 16 positions, the first 14 of them for the adapter's keys",
               [&] { embeddings(*network); });
}

TEST(Oft, BlocksMustFitTheInput) {
  const auto network = tiny_network();
  const auto refused = [&](int64_t blocks, int64_t block_size, const char* part) {
    AdapterOptions options;
    options.type = "oft";
    options.blocks = blocks;
    options.block_size = block_size;
    expect_file_error(ExitCode::usage, "E-CONFIG", part,
                      [&] { make_adapter(options, *network, 1); });
  };
  refused(3, 0, "adapter.blocks is 3, which does not divide the 16 inputs of layers.0.attn.q");
  refused(0, 0, "adapter.blocks is 0");
  refused(16, 0, "2 to 256 wide");
  refused(4, 5, "adapter.block_size is 5, which does not divide the 16 inputs");
  refused(4, 257, "adapter.block_size must be 0 to 256");
  AdapterOptions options;
  options.type = "oft";
  options.block_size = 8;
  options.targets = {"ffn_in", "ffn_out"};
  const auto adapter = make_adapter(options, *network, 1);
  EXPECT_EQ(adapter->parameters()[0]->value.shape(), (Shape{2, 28}));
  EXPECT_EQ(adapter->parameters()[1]->value.shape(), (Shape{3, 28}));
  options.constraint = -1;
  expect_file_error(ExitCode::usage, "E-CONFIG", "adapter.constraint",
                    [&] { make_adapter(options, *network, 1); });
}

TEST(Oft, ATrainedWeightBesideItIsRefused) {
  const auto network = tiny_network();
  AdapterOptions options;
  options.type = "oft";
  const auto adapter = make_adapter(options, *network, 1);
  adapter->attach(*network);
  make_trainable(adapter->parameters());
  make_trainable({network->linear_site("layers.1.attn.q").weight()});
  const TinyBatch cells;
  expect_error("layers.1.attn.q: an oft adapter needs a frozen weight",
               [&] { descend(*network, cells.batch(), adapter->parameters(), 1, 0.05); });
}

TEST(Lora, TargetsDecideWhereItIs) {
  const auto network = tiny_network();
  const std::vector<std::pair<std::string, std::string>> places = {
      {"q", "self_attn.q_proj"},     {"k", "self_attn.k_proj"}, {"v", "self_attn.v_proj"},
      {"out", "self_attn.out_proj"}, {"ffn_in", "linear1"},     {"ffn_out", "linear2"}};
  for (const auto& [target, path] : places) {
    AdapterOptions options;
    options.targets = {target};
    options.rank = 2;
    options.first_layer = options.last_layer = 1;
    const auto adapter = make_adapter(options, *network, 1);
    const auto parameters = adapter->parameters();
    ASSERT_EQ(parameters.size(), 2u);
    const std::string base = "base_model.model.transformer_encoder.layers.1." + path;
    EXPECT_EQ(parameters[0]->name, base + ".lora_A.weight");
    EXPECT_EQ(parameters[1]->name, base + ".lora_B.weight");
    EXPECT_EQ(parameters[0]->value.shape(), (Shape{2, target == "ffn_out" ? 24 : 16}));
    EXPECT_EQ(parameters[1]->value.shape(), (Shape{target == "ffn_in" ? 24 : 16, 2}));
  }
  AdapterOptions wrong;
  wrong.targets = {"q", "gate"};
  expect_file_error(ExitCode::usage, "E-CONFIG", "ffn_out",
                    [&] { make_adapter(wrong, *network, 1); });
  wrong.targets = {};
  expect_file_error(ExitCode::usage, "E-CONFIG", "ffn_out",
                    [&] { make_adapter(wrong, *network, 1); });
}

// y = W x + s B A x, written out, at one site.
TEST(Lora, AddsItsProductWithTheScaleOfAlpha) {
  const auto network = tiny_network();
  AdapterOptions options;
  options.rank = 2;
  options.alpha = 3;
  options.targets = {"out"};
  const auto adapter = make_adapter(options, *network, 1);
  for (Parameter* p : adapter->parameters())
    for (int64_t i = 0; i < p->value.numel(); ++i)
      p->value.as<float>()[i] = std::cos(static_cast<float>(i) * 0.7f) * 0.2f;
  adapter->attach(*network);
  Linear& site = network->linear_site("layers.1.attn.out");
  Context ctx;
  Tensor x({4, 16}, DType::f32), with({4, 16}, DType::f32), without({4, 16}, DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) x.as<float>()[i] = std::sin(static_cast<float>(i));
  const std::vector<int32_t> offsets = {0, 4};
  const std::vector<int64_t> ids = {0};
  const Packing packing = Packing::over(offsets, ids);
  site.forward(ctx, std::as_const(x).view(), packing, false, with.view());
  adapter->detach(*network);
  site.forward(ctx, std::as_const(x).view(), packing, false, without.view());

  const Parameter* a = adapter->parameters()[2];
  const Parameter* b = adapter->parameters()[3];
  ASSERT_NE(a->name.find("layers.1."), std::string::npos);
  const auto av = a->value.as<float, 2>(), bv = b->value.as<float, 2>();
  const auto xv = std::as_const(x).as<float, 2>();
  std::vector<double> want = values_of(std::as_const(without).view());
  for (int64_t t = 0; t < 4; ++t)
    for (int64_t o = 0; o < 16; ++o)
      for (int64_t r = 0; r < 2; ++r)
        for (int64_t i = 0; i < 16; ++i)
          want[static_cast<size_t>(t * 16 + o)] +=
              1.5 * static_cast<double>(bv(o, r)) * av(r, i) * xv(t, i);
  expect_close(std::as_const(with).view(), want, 16 * 2);
}

}  // namespace
}  // namespace scgraft
