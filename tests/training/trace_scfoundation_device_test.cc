// SPDX-License-Identifier: Apache-2.0
// Gradients of trace_checkpoint() on scFoundation checkpoints, on every device of this build,
// against differences in f64 of losses that are computed here.
#include <cmath>
#include <map>

#include "io/npz.h"
#include "model/scfoundation/cell_pooler.h"
#include "model/scfoundation/load.h"
#include "tests/io/expect_file_error.h"
#include "tests/testing/op_test.h"
#include "tests/training/tiny_models.h"
#include "training/trace.h"

namespace scgraft {
namespace {

using Arrays = std::map<std::string, Tensor>;

struct Mode {
  const char* name;
  bool cuda = false;
  DType product = DType::f32;
  double gradient = kGoldenGradient;  // of the largest element; with 16 bits of the length

  Device device() const { return cuda ? Device::cuda() : Device::cpu(); }
};
constexpr Mode kModes[] = {
    {.name = "cpu"},
    {.name = "cuda", .cuda = true},
    {.name = "cuda_bf16", .cuda = true, .product = DType::bf16, .gradient = 5e-2},
    {.name = "cuda_f16", .cuda = true, .product = DType::f16, .gradient = 1e-2},
};

// Cells with all of their entries, what their predictions should be, and classes.
struct Case {
  std::string folder, branch;
  int64_t entries = 0;
  std::vector<std::vector<float>> cells = {};
  std::vector<std::vector<float>> targets = {};
  std::vector<int64_t> labels = {};

  // As the original gathers them: expressed entries of every cell, then padding.
  Arrays inputs() const {
    const auto batch = static_cast<int64_t>(cells.size());
    int64_t seq = 0;
    for (const auto& cell : cells)
      seq = std::max<int64_t>(seq, std::ranges::count_if(cell, [](float v) { return v > 0; }));
    Arrays arrays;
    const auto put_array = [&](const char* name, DType type, int64_t width, auto value) {
      Tensor t({batch, width}, type);
      visit_real_or_id(t, value, width);
      arrays.emplace(name, std::move(t));
    };
    const auto expressed = [&](int64_t b, int64_t s) -> int64_t {
      int64_t seen = 0;
      for (int64_t e = 0; e < entries; ++e)
        if (at(cells, b, e) > 0 && seen++ == s) return e;
      return -1;
    };
    put_array("encoder_data", DType::f32, seq, [&](int64_t b, int64_t s) {
      const int64_t e = expressed(b, s);
      return e < 0 ? 103.0 : static_cast<double>(at(cells, b, e));
    });
    put_array("encoder_position_gene_ids", DType::i64, seq, [&](int64_t b, int64_t s) {
      const int64_t e = expressed(b, s);
      return e < 0 ? 103.0 : static_cast<double>(e);
    });
    put_array("encoder_data_padding", DType::u8, seq,
              [&](int64_t b, int64_t s) { return expressed(b, s) < 0 ? 1.0 : 0.0; });
    put_array("decoder_data", DType::f32, entries,
              [&](int64_t b, int64_t e) { return static_cast<double>(at(cells, b, e)); });
    put_array("decoder_position_gene_ids", DType::i64, entries,
              [](int64_t, int64_t e) { return static_cast<double>(e); });
    arrays.emplace("pretrain_gene_x", arrays.at("decoder_data").clone());
    if (!targets.empty())
      put_array("target_values", DType::f32, entries,
                [&](int64_t b, int64_t e) { return static_cast<double>(at(targets, b, e)); });
    if (!labels.empty()) {
      Tensor t({batch}, DType::i64);
      for (int64_t b = 0; b < batch; ++b) t.as<int64_t>()[b] = labels[static_cast<size_t>(b)];
      arrays.emplace("labels", std::move(t));
    }
    return arrays;
  }

  static float at(const std::vector<std::vector<float>>& rows, int64_t b, int64_t e) {
    return rows[static_cast<size_t>(b)][static_cast<size_t>(e)];
  }

 private:
  template <class F>
  static void visit_real_or_id(Tensor& t, F value, int64_t width) {
    for (int64_t i = 0; i < t.numel(); ++i) {
      const double v = value(i / width, i % width);
      if (t.dtype() == DType::f32) t.as<float>()[i] = static_cast<float>(v);
      if (t.dtype() == DType::i64) t.as<int64_t>()[i] = static_cast<int64_t>(v);
      if (t.dtype() == DType::u8) t.as<uint8_t>()[i] = static_cast<uint8_t>(v);
    }
  }
};

// The losses of a case in f64, from the network and nothing of the trace.
class ExactLoss {
 public:
  explicit ExactLoss(const Case& c)
      : case_(c), model_(load_scfoundation(c.folder, {.dtype = DType::f64, .branch = c.branch})) {
    for (size_t b = 0; b < c.cells.size(); ++b) {
      std::vector<int32_t>&some = some_.emplace_back(), &all = all_.emplace_back();
      std::vector<float>& values = values_.emplace_back();
      for (int64_t e = 0; e < c.entries; ++e) {
        const float v = Case::at(c.cells, static_cast<int64_t>(b), e);
        all.push_back(static_cast<int32_t>(e));
        if (!(v > 0)) continue;
        some.push_back(static_cast<int32_t>(e));
        values.push_back(v);
      }
    }
    std::vector<CellView> cells, whole;
    for (size_t b = 0; b < c.cells.size(); ++b) {
      const auto id = static_cast<int64_t>(b);
      cells.push_back({.cell = id, .genes = some_[b], .values = values_[b]});
      whole.push_back({.cell = id, .genes = all_[b], .values = c.cells[b]});
    }
    batch_.assign(cells);
    whole_.assign(whole);
  }

  ParameterSet& parameters() { return model_.network->parameters(); }

  double operator()() {
    ScfoundationNetwork& net = *model_.network;
    net.parameters_updated();
    Arena::Scope scope(ctx_.activations());
    Tensor x({batch_.tokens(), net.dim()}, DType::f64);
    net.encode(ctx_, batch_, {}, x.view());
    double total = 0;
    if (!case_.targets.empty()) {
      Tensor prediction({whole_.tokens(), 1}, DType::f64);
      net.decode(ctx_, batch_, x.view(), whole_, {}, prediction.view());
      double hidden = 0, hidden_square = 0, square = 0;
      for (int64_t i = 0; i < prediction.numel(); ++i) {
        const int64_t b = i / case_.entries, e = i % case_.entries;
        const double apart = prediction.as<double>()[i] - Case::at(case_.targets, b, e);
        square += apart * apart;
        if (Case::at(case_.cells, b, e) != 102.0f) continue;
        hidden_square += apart * apart;
        ++hidden;
      }
      total +=
          hidden > 0 ? hidden_square / hidden : square / static_cast<double>(prediction.numel());
    }
    if (!case_.labels.empty()) {
      CellPooler pooler(CellPooling::all);
      const PartsClassifier& head = *net.classifier();
      Tensor parts({batch_.cells(), pooler.width(net.dim())}, DType::f64);
      Tensor logits({batch_.cells(), head.classes()}, DType::f64);
      pooler.forward(ctx_, x.view(), batch_.packing(), parts.view());
      head.forward(ctx_, parts.view(), batch_.cell_rows(), logits.view(), nullptr);
      for (int64_t b = 0; b < batch_.cells(); ++b) {
        double sum = 0;
        for (int64_t c = 0; c < head.classes(); ++c)
          sum += std::exp(logits.as<double>()[b * head.classes() + c]);
        total += (std::log(sum) -
                  logits.as<double>()[b * head.classes() + case_.labels[static_cast<size_t>(b)]]) /
                 static_cast<double>(batch_.cells());
      }
    }
    return total;
  }

 private:
  const Case& case_;
  ScfoundationModel model_;
  Context ctx_{Device::cpu(), {.threads = 1}};
  std::vector<std::vector<int32_t>> some_, all_;
  std::vector<std::vector<float>> values_;
  TokenBatch batch_, whole_;
};

// The slope of the loss along one element.
double slope(ExactLoss& loss, Parameter& p, int64_t element) {
  constexpr double kStep = 1e-6;  // few units of a relu turn on or off on the way
  double& value = p.value.as<double>()[element];
  const double before = value;
  value = before + kStep;
  const double above = loss();
  value = before - kStep;
  const double below = loss();
  value = before;
  return (above - below) / (2 * kStep);
}

class TraceScfoundation : public ::testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (GetParam().cuda && cuda_device_count() == 0)
      GTEST_SKIP() << "this machine or build has no CUDA device";
  }
  Arrays trace(const Case& c, const Arrays& inputs) const {
    Context ctx(GetParam().device());
    return trace_checkpoint(ctx, c.folder, inputs,
                            {.gradient = "", .product = GetParam().product, .branch = c.branch});
  }
  // Of every parameter the element with the largest gradient, and two others.
  void expect_slopes(const Case& c) {
    const Arrays got = trace(c, c.inputs());
    ExactLoss loss(c);
    const Mode mode = GetParam();
    double square = 0, apart = 0;
    size_t compared = 0;
    for (Parameter* p : loss.parameters().all()) {
      SCOPED_TRACE(p->name);
      const auto found = got.find("grad." + p->name);
      EXPECT_EQ(found == got.end(), p->name.ends_with("projection_matrix"));
      if (found == got.end()) continue;
      const Tensor& gradient = found->second;
      ASSERT_EQ(gradient.shape(), p->value.shape());
      const std::vector<double> g = values_of(gradient.view());
      int64_t top = 0;
      for (int64_t i = 0; i < gradient.numel(); ++i)
        if (std::abs(g[static_cast<size_t>(i)]) > std::abs(g[static_cast<size_t>(top)])) top = i;
      const double largest = std::abs(g[static_cast<size_t>(top)]);
      for (const int64_t i : {top, gradient.numel() / 3, gradient.numel() - 1}) {
        const double want = slope(loss, *p, i);
        const double difference = g[static_cast<size_t>(i)] - want;
        square += want * want;
        apart += difference * difference;
        if (mode.product == DType::f32) {
          EXPECT_LE(std::abs(difference), mode.gradient * largest + 1e-6) << "element " << i;
        }
      }
      compared += largest > 1e-6;
    }
    EXPECT_GT(compared, 40u);
    EXPECT_LE(std::sqrt(apart), mode.gradient * std::sqrt(square));
  }
  // Three cells of different lengths, with entries hidden from the encoder's eyes.
  Case tiny(int64_t classes) {
    std::vector<std::string> genes;
    for (int i = 0; i < 18; ++i) genes.push_back(cat("G", i));
    Case c{.folder = folder_ / "model", .branch = "cell", .entries = 20};
    write_scfoundation(c.folder, genes, classes);
    for (int b = 0; b < 3; ++b) {
      auto &cell = c.cells.emplace_back(20, 0.0f), &target = c.targets.emplace_back(20, 0.0f);
      for (int e = 0; e < 18; ++e) {
        const float value = static_cast<float>((e * 7 + b * 5) % 11) / 4;
        target[static_cast<size_t>(e)] = value;
        if (e % (2 + b) == 0) cell[static_cast<size_t>(e)] = value;
      }
      cell[static_cast<size_t>(1 + b)] = 102.0f;
      cell[18] = 4.0f;
      cell[19] = 3.0f + 0.25f * static_cast<float>(b);
    }
    return c;
  }

  TemporaryFolder folder_;
};
INSTANTIATE_TEST_SUITE_P(Modes, TraceScfoundation, ::testing::ValuesIn(kModes),
                         [](const auto& p) { return p.param.name; });

TEST_P(TraceScfoundation, SlopesOfPredictionsAndClasses) {
  Case c = tiny(4);
  c.labels = {2, 0, 3};
  expect_slopes(c);
}

// Where nothing is hidden all entries count.
TEST_P(TraceScfoundation, SlopesOfTheRecordedCheckpoint) {
  const std::string name = "golden/scfoundation_mae_autobin";
  SCGRAFT_NEEDS_SHARED(name);
  Case c{.folder = shared_path(name), .branch = "gene", .entries = 32};
  const Arrays recorded = read_npz(c.folder + "/arrays.npz");
  const std::vector<double> data = values_of(recorded.at("decoder_data").view());
  for (size_t b = 0; b < 2; ++b) {
    auto &cell = c.cells.emplace_back(), &target = c.targets.emplace_back();
    for (size_t e = 0; e < 32; ++e) {
      cell.push_back(static_cast<float>(data[b * 32 + e]));
      target.push_back(static_cast<float>((e * 5 + b) % 7) / 3);
    }
  }
  expect_slopes(c);
}

TEST_P(TraceScfoundation, LossesAreNamedAndWantWhatTheyAreOf) {
  if (GetParam().product != DType::f32) GTEST_SKIP() << "said once for each device";
  Case c = tiny(4);
  c.labels = {2, 0, 3};
  Arrays inputs = c.inputs();
  const Arrays both = trace(c, inputs);
  EXPECT_NEAR(values_of(both.at("loss_mse").view())[0] + values_of(both.at("loss_cls").view())[0],
              ExactLoss(c)(), 1e-4);
  EXPECT_EQ(both.at("logits").shape(), (Shape{3, 4}));
  inputs.erase("labels");
  const Arrays one = trace(c, inputs);
  EXPECT_FALSE(one.contains("loss_cls"));
  EXPECT_EQ(values_of(one.at("grad.fc1.2.bias").view()), std::vector<double>(4, 0.0));
  inputs.erase("target_values");
  expect_error("a gradient needs target_values", [&] { trace(c, inputs); });
  c = tiny(0);
  c.labels = {2, 0, 3};
  c.targets.clear();
  expect_error("a checkpoint with a classifier", [&] { trace(c, c.inputs()); });
  c.labels = {};
  Context ctx(GetParam().device());
  expect_file_error(ExitCode::usage, "E-TRACE-GRADIENT", "takes no name, got \"multi\"", [&] {
    trace_checkpoint(ctx, c.folder, c.inputs(), {.gradient = "multi", .branch = c.branch});
  });
}

}  // namespace
}  // namespace scgraft
