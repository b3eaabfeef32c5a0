// SPDX-License-Identifier: Apache-2.0
// Layers that are computed again for the backward pass, on every device there is.
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "tests/adapters/tiny_backbone.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

struct Mode {
  const char* name;
  const char* device;
  DType product;
};
constexpr Mode kModes[] = {
    {"cpu", "cpu", DType::f32}, {"cuda", "cuda", DType::f32}, {"cuda_bf16", "cuda", DType::bf16}};

struct Network {
  const char* name;
  std::unique_ptr<Backbone> (*make)();
};

std::unique_ptr<Backbone> scgpt(bool pre_norm) {
  ScgptConfig config;
  config.pre_norm = pre_norm;
  config.vocab = 20;
  config.dim = 16;
  config.heads = 4;
  config.layers = 3;
  config.ffn = 24;
  config.dropout = 0.2;
  return std::make_unique<ScgptNetwork>(
      config, ScgptNetwork::Heads{.decoder = false, .mvc = false, .classes = 0},
      scgpt_initialiser(1));
}

constexpr Network kNetworks[] = {
    {"geneformer",
     []() -> std::unique_ptr<Backbone> {
       GeneformerConfig config;
       config.vocab = 20;
       config.dim = 16;
       config.heads = 4;
       config.layers = 3;
       config.ffn = 24;
       config.positions = 16;
       config.dropout = config.attention_dropout = 0.1;
       return std::make_unique<GeneformerNetwork>(config, GeneformerNetwork::Heads{.words = false},
                                                  geneformer_initialiser(1));
     }},
    {"prenorm", [] { return scgpt(true); }},
    {"scbert", []() -> std::unique_ptr<Backbone> { return tiny_scbert(); }},
    {"scfoundation", []() -> std::unique_ptr<Backbone> { return tiny_scfoundation(); }},
    {"scgpt", [] { return scgpt(false); }},
};

// In a layer's every place, in one above a layer without, and in front of its keys.
constexpr const char* kAdapters[] = {"lora", "token+encoder+lora", "prefix+hra", "prefix_tuning"};

class RecomputedLayers : public ::testing::TestWithParam<std::tuple<Mode, Network, const char*>> {
 protected:
  void SetUp() override {
    if (std::string(mode().device) == "cuda" && cuda_device_count() == 0)
      GTEST_SKIP() << "this machine or build has no CUDA device";
    ctx_.emplace(Device::parse(mode().device), ContextOptions{.threads = 1});
    network_ = std::get<1>(GetParam()).make();
    network_->set_precision(mode().product);
    network_->move_to(ctx_->device());
    AdapterOptions options;
    options.type = std::get<2>(GetParam());
    options.rank = 4;
    options.dropout = 0.1;
    options.layout = "parallel";
    options.start = "uniform";
    options.first_layer = options.type == "lora" ? 1 : 0;
    adapter_ = make_adapter(options, *network_, 7);
    adapter_->attach(*network_);
    batch_.emplace(&*ctx_);
  }
  void TearDown() override {
    if (adapter_) adapter_->detach(*network_);
  }
  Mode mode() const { return std::get<0>(GetParam()); }

  struct Pass {
    std::vector<Tensor> tensors;  // the result, then the gradients
    int64_t memory = 0;           // that the activations of the forward pass need
  };
  Pass pass(LayerRows rows, bool recompute) {
    network_->set_recompute(recompute);
    for (Parameter* p : adapter_->parameters()) p->grad = Tensor();
    make_trainable(adapter_->parameters());
    ctx_->random() = {.seed = 9, .step = 3};
    const Arena::Scope scope(ctx_->activations());
    const int64_t n = rows == LayerRows::cls ? batch_->batch().cells() : batch_->batch().tokens();
    Tensor out({n, network_->dim()}, DType::f32, ctx_->device()), dout(out.shape(), DType::f32);
    const EncodeOptions options{.training = true, .save = true, .rows = rows};
    network_->encode(*ctx_, batch_->batch(), options, out.view());
    Pass result;
    result.memory = ctx_->activations().used();
    result.tensors.push_back(on_host(out.view()));
    for (int64_t i = 0; i < dout.numel(); ++i)
      dout.as<float>()[i] = std::sin(static_cast<float>(i));
    Tensor consumed = dout.to(ctx_->device());
    network_->encode_backward(*ctx_, batch_->batch(), options, consumed.view());
    for (const Parameter* p : adapter_->parameters())
      result.tensors.push_back(on_host(p->grad.view()));
    return result;
  }

  std::optional<Context> ctx_;
  std::unique_ptr<Backbone> network_;
  std::unique_ptr<Adapter> adapter_;
  std::optional<TinyBatch> batch_;
};

std::string name_of(const ::testing::TestParamInfo<RecomputedLayers::ParamType>& info) {
  const auto& [mode, network, adapter] = info.param;
  std::string name = cat(network.name, "_", adapter, "_", mode.name);
  std::replace(name.begin(), name.end(), '+', '_');
  return name;
}

using Triple = std::tuple<Mode, Network, const char*>;

std::vector<Triple> triples() {
  std::vector<Triple> all;
  for (const Mode& mode : kModes)
    for (const Network& network : kNetworks)
      for (const char* adapter : kAdapters) all.push_back({mode, network, adapter});
  return all;
}
INSTANTIATE_TEST_SUITE_P(Modes, RecomputedLayers, ::testing::ValuesIn(triples()), name_of);

TEST_P(RecomputedLayers, GiveTheSameBitsInLessMemory) {
  for (const LayerRows rows : {LayerRows::all, LayerRows::cls}) {
    if (rows == LayerRows::cls && network_->kind() == "scbert") continue;
    const Pass kept = pass(rows, false), recomputed = pass(rows, true);
    EXPECT_LT(recomputed.memory, kept.memory);
    ASSERT_EQ(recomputed.tensors.size(), kept.tensors.size());
    for (size_t i = 0; i < kept.tensors.size(); ++i)
      expect_same_bits(recomputed.tensors[i].view(), kept.tensors[i].view());
  }
}

}  // namespace
}  // namespace scgraft
