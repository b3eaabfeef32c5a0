// SPDX-License-Identifier: Apache-2.0
#include "io/simulate.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <unordered_map>

#include "runtime/error.h"
#include "runtime/parallel.h"
#include "runtime/random.h"

namespace scgraft {
namespace {

// Second counter word: one per use, files apart. Part of what a seed means; never renumber.
enum class Draw : uint32_t {
  base = 1,
  type = 2,
  pair = 3,
  nuisance = 4,
  interferon = 5,
  donor = 16,  // and the following ones + file
  batch = 18,
  type_shift = 20,
  shift = 22,
  proportions = 24,
  cell = 26,
  count = 28,
};

uint32_t word(Draw draw, SimulatedFile file = SimulatedFile::atlas) {
  return static_cast<uint32_t>(draw) + static_cast<uint32_t>(file);
}

constexpr double kLineageEffect = 2.2;
constexpr double kTypeEffect = 0.9;
constexpr double kPairEffect = 0.9;
constexpr size_t kPairGenes = 14;
constexpr int kNuisancePrograms = 4;
constexpr int kNuisanceGenes = 60;
constexpr double kNoise = 0.35;
constexpr double kDropout = 0.3;
constexpr double kNormalAbove = 40;

// Mean and spread of the log expression of a gene class.
struct Level {
  double mean, spread;
};
Level level_of(GeneClass kind) {
  switch (kind) {
    case GeneClass::housekeeping:
      return {2.6, 0.7};
    case GeneClass::ribosomal:
      return {3.0, 0.5};
    case GeneClass::mitochondrial:
      return {2.8, 0.6};
    case GeneClass::hla:
      return {1.2, 1.0};
    case GeneClass::marker:
      return {0.3, 0.7};
    case GeneClass::interferon:
      return {0.0, 0.8};
    case GeneClass::cycle:
      return {-0.3, 0.6};
    case GeneClass::stress:
      return {0.8, 0.9};
    default:
      return {0.3, 1.0};
  }
}

// exp(eta), divided by its sum.
void softmax(std::span<const float> eta, std::span<float> p) {
  double sum = 0;
  for (size_t g = 0; g < eta.size(); ++g) {
    p[g] = std::exp(eta[g]);
    sum += p[g];
  }
  const float scale = static_cast<float>(1 / sum);
  for (float& v : p) v *= scale;
}

// Number of events with mean mu by walking the distribution function up to u in [0, 1).
int poisson(float mu, float u) {
  float term = std::exp(-mu), sum = term;
  int k = 0;
  // The sum may stop below u in f32; far beyond the mean there is nothing left to find.
  while (u >= sum && k < 200) {
    ++k;
    term *= mu / static_cast<float>(k);
    sum += term;
  }
  return k;
}

// The count of one gene from the four random words of (file, cell, gene).
int draw_count(float mean, const PhiloxCounter& words) {
  const float radius = std::sqrt(-2.f * std::log(1.f - uniform24(words[0])));
  const float angle = 2.f * std::numbers::pi_v<float> * uniform24(words[1]);
  constexpr float kHalfVariance = static_cast<float>(kNoise * kNoise / 2);
  const float mu =
      mean * std::exp(static_cast<float>(kNoise) * radius * std::cos(angle) - kHalfVariance);
  const int count =
      mu < static_cast<float>(kNormalAbove)
          ? poisson(mu, uniform24(words[2]))
          : static_cast<int>(std::lround(mu + std::sqrt(mu) * radius * std::sin(angle)));
  const bool dropped = uniform24(words[3]) < static_cast<float>(kDropout) * std::exp(-mu);
  return dropped ? 0 : std::max(count, 0);
}

template <class T>
void want(const char* name, T value, double low, double high) {
  if (value >= low && value <= high) return;
  ConfigError error(
      cat("simulate: ", name, " must lie between ", low, " and ", high, ", it is ", value),
      "E-SIMULATE");
  error.set_hint(cat("choose another value of ", name));
  throw error;
}

// k distinct genes out of `genes`, in the order of drawing.
std::vector<int32_t> sample(std::vector<int32_t> genes, size_t k, RandomStream& random) {
  for (size_t i = 0; i < k; ++i) std::swap(genes[i], genes[i + random.below(genes.size() - i)]);
  genes.resize(k);
  return genes;
}

}  // namespace

struct Simulator::OneCell {
  int32_t type = 0, donor = 0;
  int64_t total = 0;
  std::vector<int32_t> gene;
  std::vector<float> count;
};

void Simulator::Program::add_to(std::vector<float>& eta, double scale) const {
  const auto s = static_cast<float>(scale);
  for (size_t i = 0; i < gene.size(); ++i) eta[static_cast<size_t>(gene[i])] += s * value[i];
}

Simulator::Simulator(const SimulateOptions& options) : options_(options) {
  want("cells", options.cells, 1, 2147483648.0);
  want("shifted cells", options.shifted_cells, 1, 2147483648.0);
  want("types", options.types, 2, static_cast<double>(blood_cell_types().size()));
  want("genes", options.genes, 300, static_cast<double>(human_genes().size()));
  want("donors", options.donors, 1, 64);
  want("signal", options.signal, 0, 10);
  want("depth", options.depth, 10, 1e6);
  want("shift", options.shift, 0, 2);

  // Programs that are not made of markers.
  std::vector<int32_t> free;
  for (int32_t g = 0; g < options_.genes; ++g) {
    const GeneClass kind = genes()[static_cast<size_t>(g)].kind;
    if (kind == GeneClass::cycle) cycle_.add(g, 1.5);
    if (kind == GeneClass::stress) stress_.add(g, 0.8);
    if (kind == GeneClass::interferon) {
      RandomStream random(options_.seed, RandomUse::simulate, word(Draw::interferon),
                          static_cast<uint32_t>(g));
      interferon_.add(g, 0.8 + 1.8 * random.uniform());
    }
    if (kind != GeneClass::marker && kind != GeneClass::interferon) free.push_back(g);
  }
  for (int pair = 0; pair < (options_.types + 1) / 2; ++pair) {
    RandomStream random(options_.seed, RandomUse::simulate, word(Draw::pair),
                        static_cast<uint32_t>(pair));
    const std::vector<int32_t> chosen = sample(free, 2 * kPairGenes, random);
    agree_.emplace_back();
    flip_.emplace_back();
    for (size_t i = 0; i < chosen.size(); ++i)
      (i < kPairGenes ? agree_ : flip_).back().add(chosen[i], kPairEffect);
  }
  for (int k = 0; k < kNuisancePrograms; ++k) {
    RandomStream random(options_.seed, RandomUse::simulate, word(Draw::nuisance),
                        static_cast<uint32_t>(k));
    nuisance_.emplace_back();
    for (int i = 0; i < kNuisanceGenes; ++i) {
      const auto g = static_cast<int32_t>(random.below(static_cast<uint64_t>(options_.genes)));
      nuisance_.back().add(g, 0.35 * random.normal());
    }
  }
  studies_.push_back(make_study(SimulatedFile::atlas));
  studies_.push_back(make_study(SimulatedFile::shifted));
}

int64_t Simulator::n_cells(SimulatedFile file) const {
  return file == SimulatedFile::atlas ? options_.cells : options_.shifted_cells;
}
std::span<const GeneEntry> Simulator::genes() const {
  return human_genes().first(static_cast<size_t>(options_.genes));
}
std::span<const BloodCellType> Simulator::types() const {
  return blood_cell_types().first(static_cast<size_t>(options_.types));
}
std::string Simulator::donor_name(SimulatedFile file, int32_t donor) const {
  return cat(file == SimulatedFile::atlas ? "A" : "S", donor + 1);
}
std::string Simulator::batch_name(SimulatedFile file, int32_t donor) const {
  return cat(file == SimulatedFile::atlas ? "A" : "S", "-run", donor % 2 + 1);
}
const char* Simulator::condition(SimulatedFile file) {
  return file == SimulatedFile::atlas ? "control" : "stimulated";
}
std::span<const double> Simulator::proportions(SimulatedFile file) const {
  return study(file).proportions;
}

std::vector<float> Simulator::base() const {
  std::vector<float> eta;
  for (const GeneEntry& gene : genes()) {
    const Level level = level_of(gene.kind);
    RandomStream random(options_.seed, RandomUse::simulate, word(Draw::base),
                        static_cast<uint32_t>(eta.size()));
    eta.push_back(static_cast<float>(level.mean + level.spread * random.normal()));
  }
  return eta;
}

// L[lineage] + signal * fade * T[type].
std::vector<float> Simulator::type_effects(int t, double fade) const {
  std::unordered_map<std::string_view, size_t> number;
  for (size_t g = 0; g < genes().size(); ++g) number.emplace(genes()[g].symbol, g);
  std::vector<float> eta(genes().size());
  const auto raise = [&](std::span<const std::string_view> markers, double by) {
    for (const std::string_view symbol : markers)
      if (const auto found = number.find(symbol); found != number.end())
        eta[found->second] += static_cast<float>(by);
  };
  const double size = options_.signal * fade;
  RandomStream random(options_.seed, RandomUse::simulate, word(Draw::type),
                      static_cast<uint32_t>(t));
  for (size_t g = 0; g < eta.size(); ++g) {
    const bool chosen = random.below(12) == 0;
    const double effect = 0.25 * random.normal();
    if (chosen && genes()[g].kind != GeneClass::marker) eta[g] += static_cast<float>(size * effect);
  }
  const BloodCellType& type = types()[static_cast<size_t>(t)];
  const bool distinct = type.lineage == "plasma" || type.lineage == "platelet";
  raise(type.lineage_markers, distinct ? 1.5 * kLineageEffect : kLineageEffect);
  raise(type.markers, size * kTypeEffect);
  return eta;
}

Simulator::Study Simulator::make_study(SimulatedFile file) const {
  const bool shifted = file == SimulatedFile::shifted;
  const double shift = shifted ? options_.shift : 0;
  const size_t n = genes().size();
  const auto stream = [&](Draw draw, int64_t item) {
    return RandomStream(options_.seed, RandomUse::simulate, word(draw, file),
                        static_cast<uint32_t>(item));
  };
  Study study;
  study.depth = options_.depth * (shifted ? 0.6 : 1.0);
  study.depth_spread = shifted ? 0.45 : 0.35;
  study.ambient_share = 0.03 + 0.09 * shift;

  std::vector<float> common = base();
  RandomStream everywhere = stream(Draw::shift, 0);
  for (float& v : common) v += static_cast<float>(shift * 0.15 * everywhere.normal());
  RandomStream mix = stream(Draw::proportions, 0);
  double sum = 0;
  for (int t = 0; t < options_.types; ++t) {
    std::vector<float> eta = type_effects(t, 1 - 0.25 * shift);
    RandomStream own = stream(Draw::type_shift, t);
    for (size_t g = 0; g < n; ++g) {
      const bool chosen = own.below(10) == 0;
      const double effect = 0.25 * own.normal();
      eta[g] += common[g] + static_cast<float>(chosen ? shift * effect : 0);
    }
    study.type.push_back(std::move(eta));
    study.proportions.push_back(std::exp((shifted ? 0.9 : 0.5) * mix.normal()));
    sum += study.proportions.back();
  }
  for (double& p : study.proportions) p /= sum;

  study.ambient.resize(n);
  std::vector<float> p(n);
  for (size_t t = 0; t < study.type.size(); ++t) {
    softmax(study.type[t], p);
    for (size_t g = 0; g < n; ++g)
      study.ambient[g] += static_cast<float>(study.proportions[t]) * p[g];
  }
  for (int d = 0; d < options_.donors; ++d) {
    RandomStream own = stream(Draw::donor, d), run = stream(Draw::batch, d % 2);
    std::vector<float>& effect = study.donor.emplace_back(n);
    for (float& v : effect) v = static_cast<float>(0.15 * own.normal() + 0.1 * run.normal());
  }
  return study;
}

void Simulator::draw_cell(SimulatedFile file, int64_t cell, std::vector<float>& eta,
                          OneCell& out) const {
  const Study& s = study(file);
  RandomStream random(options_.seed, RandomUse::simulate, word(Draw::cell, file),
                      static_cast<uint32_t>(cell));
  // All draws are made in every cell and in this order, so that options of the effects' size
  // leave types and donors as they are.
  const double pick = random.uniform();
  double below = 0;
  out.type = options_.types - 1;
  for (int t = 0; t + 1 < options_.types; ++t)
    if (below += s.proportions[static_cast<size_t>(t)]; pick < below) {
      out.type = t;
      break;
    }
  out.donor = static_cast<int32_t>(random.below(static_cast<uint64_t>(options_.donors)));
  const double depth = s.depth * std::exp(s.depth_spread * random.normal());
  const double z = random.below(2) == 0 ? -1 : 1;
  const double cycling = random.uniform() < 0.15 ? 0.5 + random.uniform() : 0;
  const double stress = std::exp(0.6 * random.normal()) - 1;
  const double answer = 0.5 + random.uniform();
  const bool infected = random.uniform() < 0.2;

  const auto t = static_cast<size_t>(out.type);
  const std::vector<float>&type = s.type[t], &donor = s.donor[static_cast<size_t>(out.donor)];
  for (size_t g = 0; g < eta.size(); ++g) eta[g] = type[g] + donor[g];
  const double sign = out.type % 2 == 0 ? 1 : -1;
  agree_[t / 2].add_to(eta, options_.signal * z);
  flip_[t / 2].add_to(eta, options_.signal * z * sign);
  cycle_.add_to(eta, cycling);
  stress_.add_to(eta, stress);
  for (const Program& program : nuisance_) program.add_to(eta, random.normal());
  const double strength = file == SimulatedFile::shifted ? options_.shift : infected ? 0.3 : 0;
  interferon_.add_to(eta, strength * answer * types()[t].interferon);

  softmax(eta, eta);
  const auto share = static_cast<float>(s.ambient_share), scale = static_cast<float>(depth);
  const PhiloxKey key{static_cast<uint32_t>(options_.seed),
                      static_cast<uint32_t>(options_.seed >> 32)};
  out.gene.clear();
  out.count.clear();
  out.total = 0;
  for (size_t g = 0; g < eta.size(); ++g) {
    const float mean = scale * ((1 - share) * eta[g] + share * s.ambient[g]);
    const PhiloxCounter words =
        philox({static_cast<uint32_t>(RandomUse::simulate), word(Draw::count, file),
                static_cast<uint32_t>(cell), static_cast<uint32_t>(g)},
               key);
    const int count = draw_count(mean, words);
    if (count == 0) continue;
    out.gene.push_back(static_cast<int32_t>(g));
    out.count.push_back(static_cast<float>(count));
    out.total += count;
  }
}

void Simulator::cells(Context& ctx, SimulatedFile file, int64_t first, int64_t count,
                      SimulatedCells& out) const {
  require(first >= 0 && count >= 0 && first + count <= n_cells(file), "simulate: cells ", first,
          " to ", first + count, " were wanted, the file has ", n_cells(file));
  constexpr int64_t kBlock = 64;  // cells of one task
  std::vector<OneCell> drawn(static_cast<size_t>(count));
  parallel_for(ctx, (count + kBlock - 1) / kBlock, [&](int64_t block) {
    std::vector<float> eta(genes().size());
    for (int64_t c = block * kBlock; c < std::min(count, (block + 1) * kBlock); ++c)
      draw_cell(file, first + c, eta, drawn[static_cast<size_t>(c)]);
  });
  out = {};
  out.counts.first_row = first;
  out.counts.columns = options_.genes;
  out.counts.offsets = {0};
  for (const OneCell& cell : drawn) {
    out.type.push_back(cell.type);
    out.donor.push_back(cell.donor);
    out.total.push_back(cell.total);
    out.counts.column.insert(out.counts.column.end(), cell.gene.begin(), cell.gene.end());
    out.counts.value.insert(out.counts.value.end(), cell.count.begin(), cell.count.end());
    out.counts.offsets.push_back(static_cast<int64_t>(out.counts.column.size()));
  }
}

}  // namespace scgraft
