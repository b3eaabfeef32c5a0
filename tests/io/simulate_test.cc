// SPDX-License-Identifier: Apache-2.0
#include "io/simulate.h"

#include <gmock/gmock.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <iterator>
#include <numeric>
#include <set>
#include <thread>

#include "tests/io/h5ad_fixture.h"

namespace scgraft {
namespace {

Context& ctx() {
  static Context context;
  return context;
}

SimulatedCells draw(const Simulator& simulator, SimulatedFile file, int64_t first, int64_t count) {
  SimulatedCells cells;
  simulator.cells(ctx(), file, first, count, cells);
  return cells;
}

// HDF5 would store when each object was made.
TEST(SimulateFiles, TheSameOptionsGiveTheSameBytesAtAnotherTime) {
  const TemporaryFolder folder;
  const SimulateOptions options{.cells = 30, .shifted_cells = 10, .types = 2, .genes = 300};
  simulate_files(ctx(), folder / "a", options, Overwrite::refuse);
  const auto begin = std::time(nullptr);
  while (std::time(nullptr) == begin) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  simulate_files(ctx(), folder / "b", options, Overwrite::refuse);
  for (const char* name : {"/atlas.h5ad", "/shifted.h5ad"}) {
    const std::string a = read_text(folder / "a" + name), b = read_text(folder / "b" + name);
    ASSERT_GT(a.size(), 1000U);
    EXPECT_TRUE(a == b) << name;
  }
}

// log(1 + counts per 10,000), cells in rows.
std::vector<std::vector<double>> log_expression(const SimulatedCells& cells) {
  std::vector<std::vector<double>> x;
  for (int64_t c = 0; c < cells.counts.rows(); ++c) {
    x.emplace_back(static_cast<size_t>(cells.counts.columns));
    for (size_t k = 0; k < cells.counts.columns_of(c).size(); ++k)
      x.back()[static_cast<size_t>(cells.counts.columns_of(c)[k])] =
          std::log1p(1e4 * cells.counts.values_of(c)[k] /
                     static_cast<double>(cells.total[static_cast<size_t>(c)]));
  }
  return x;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t g = 0; g < a.size(); ++g) sum += (a[g] - b[g]) * (a[g] - b[g]);
  return sum;
}

// Share of `test` that has the type of the nearest mean of `train`.
double centroid_accuracy(const SimulatedCells& train, const SimulatedCells& test, int types) {
  const auto x = log_expression(train), y = log_expression(test);
  std::vector<std::vector<double>> mean(static_cast<size_t>(types),
                                        std::vector<double>(x[0].size()));
  std::vector<double> count(mean.size());
  for (size_t c = 0; c < x.size(); ++c) {
    const auto t = static_cast<size_t>(train.type[c]);
    count[t] += 1;
    for (size_t g = 0; g < x[c].size(); ++g) mean[t][g] += x[c][g];
  }
  for (size_t t = 0; t < mean.size(); ++t)
    for (double& v : mean[t]) v /= count[t];
  int right = 0;
  for (size_t c = 0; c < y.size(); ++c) {
    size_t best = 0;
    for (size_t t = 1; t < mean.size(); ++t)
      if (distance(y[c], mean[t]) < distance(y[c], mean[best])) best = t;
    right += static_cast<int32_t>(best) == test.type[c];
  }
  return right / static_cast<double>(y.size());
}

// Share of `test` whose nearest cell of `train` (Euclidean) has its type.
double neighbour_accuracy(const SimulatedCells& train, const SimulatedCells& test) {
  const auto x = log_expression(train), y = log_expression(test);
  int right = 0;
  for (size_t c = 0; c < y.size(); ++c) {
    size_t best = 0;
    double nearest = distance(y[c], x[0]);
    for (size_t i = 1; i < x.size(); ++i)
      if (const double d = distance(y[c], x[i]); d < nearest) nearest = d, best = i;
    right += train.type[best] == test.type[c];
  }
  return right / static_cast<double>(y.size());
}

TEST(HumanGenes, AreDistinctAndIdentified) {
  const auto genes = human_genes();
  ASSERT_EQ(genes.size(), 1200u);
  std::set<std::string> symbols, ids;
  for (const GeneEntry& gene : genes) {
    EXPECT_TRUE(symbols.insert(gene.symbol).second) << gene.symbol;
    EXPECT_TRUE(ids.insert(gene.ensembl).second) << gene.ensembl;
    EXPECT_EQ(gene.ensembl.size(), 15u) << gene.ensembl;
    EXPECT_EQ(gene.ensembl.substr(0, 4), "ENSG");
  }
  EXPECT_EQ(genes[0].symbol, "CD3D");
  EXPECT_EQ(genes[0].ensembl, "ENSG00000167286");
  for (const char* known : {"ACTB", "GAPDH", "MT-CO1", "RPL3", "RPS27A", "HLA-DRA", "ISG15", "LYZ"})
    EXPECT_TRUE(symbols.count(known)) << known;
}

TEST(BloodCellTypes, NameOnlyKnownGenesWithinTheSmallestTable) {
  std::set<std::string_view> known;
  for (const GeneEntry& gene : human_genes().first(300)) known.insert(gene.symbol);
  EXPECT_EQ(blood_cell_types().size(), 16u);
  for (const BloodCellType& type : blood_cell_types()) {
    for (const std::string_view m : type.lineage_markers) EXPECT_TRUE(known.count(m)) << m;
    for (const std::string_view m : type.markers) EXPECT_TRUE(known.count(m)) << m;
  }
}

TEST(Simulator, EveryCellIsTheSameInAnyChunkAndOnAnyNumberOfThreads) {
  const Simulator simulator({.cells = 300, .shifted_cells = 200});
  Context one(Device::cpu(), {.threads = 1});
  for (const SimulatedFile file : {SimulatedFile::atlas, SimulatedFile::shifted}) {
    const SimulatedCells all = draw(simulator, file, 0, 200);
    SimulatedCells part;
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {77, 70}, {199, 1}}) {
      simulator.cells(one, file, first, count, part);
      EXPECT_EQ(part.counts.first_row, first);
      ASSERT_EQ(part.counts.rows(), count);
      for (int64_t c = 0; c < count; ++c) {
        const auto i = static_cast<size_t>(first + c);
        EXPECT_EQ(part.type[static_cast<size_t>(c)], all.type[i]);
        EXPECT_EQ(part.donor[static_cast<size_t>(c)], all.donor[i]);
        EXPECT_EQ(part.total[static_cast<size_t>(c)], all.total[i]);
        EXPECT_TRUE(
            std::ranges::equal(part.counts.columns_of(c), all.counts.columns_of(first + c)));
        EXPECT_TRUE(std::ranges::equal(part.counts.values_of(c), all.counts.values_of(first + c)));
      }
    }
  }
}

TEST(Simulator, SeedsAndFilesDiffer) {
  const Simulator a({.seed = 1}), again({.seed = 1}), b({.seed = 2});
  const SimulatedCells first = draw(a, SimulatedFile::atlas, 0, 50);
  EXPECT_EQ(first.counts.value, draw(again, SimulatedFile::atlas, 0, 50).counts.value);
  EXPECT_NE(first.counts.value, draw(b, SimulatedFile::atlas, 0, 50).counts.value);
  EXPECT_NE(first.counts.value, draw(a, SimulatedFile::shifted, 0, 50).counts.value);
  EXPECT_NE(first.type, draw(a, SimulatedFile::shifted, 0, 50).type);
}

TEST(Simulator, CountsAreWholeAndTotalsAddUp) {
  const Simulator simulator({.cells = 500});
  const SimulatedCells cells = draw(simulator, SimulatedFile::atlas, 0, 500);
  double depth = 0;
  for (int64_t c = 0; c < 500; ++c) {
    double sum = 0;
    for (const float v : cells.counts.values_of(c)) {
      EXPECT_GE(v, 1);
      EXPECT_EQ(v, std::floor(v));
      sum += v;
    }
    EXPECT_EQ(sum, static_cast<double>(cells.total[static_cast<size_t>(c)]));
    depth += sum / 500;
  }
  // Log-normal mean 2200 exp(0.35^2 / 2), less the counts that dropout takes.
  EXPECT_GT(depth, 1900);
  EXPECT_LT(depth, 2400);
}

TEST(Simulator, TypesFollowTheProportionsOfTheirFile) {
  const Simulator simulator({.cells = 3000, .shifted_cells = 3000, .types = 5});
  for (const SimulatedFile file : {SimulatedFile::atlas, SimulatedFile::shifted}) {
    const SimulatedCells cells = draw(simulator, file, 0, 3000);
    std::vector<double> share(5);
    for (const int32_t t : cells.type) share[static_cast<size_t>(t)] += 1. / 3000;
    double sum = 0;
    for (size_t t = 0; t < 5; ++t) {
      const double p = simulator.proportions(file)[t];
      EXPECT_NEAR(share[t], p, 4 * std::sqrt(p / 3000)) << t;  // four standard errors
      sum += p;
    }
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

TEST(Simulator, InterferonRisesInTheShiftedFileAndDepthFalls) {
  const Simulator simulator({});
  const auto share = [&](SimulatedFile file) {
    const SimulatedCells cells = draw(simulator, file, 0, 400);
    double interferon = 0, all = 0;
    for (size_t k = 0; k < cells.counts.value.size(); ++k) {
      const auto g = static_cast<size_t>(cells.counts.column[k]);
      all += cells.counts.value[k];
      if (simulator.genes()[g].kind == GeneClass::interferon) interferon += cells.counts.value[k];
    }
    return std::pair{interferon / all, all / 400};
  };
  const auto [before, deep] = share(SimulatedFile::atlas);
  const auto [after, shallow] = share(SimulatedFile::shifted);
  EXPECT_GT(after, 2 * before);
  EXPECT_LT(shallow, 0.8 * deep);
}

// Related types must be learnable, and matching cells with their neighbours must not be enough.
TEST(Simulator, TypesAreHardButNotHopeless) {
  const Simulator simulator({});
  const SimulatedCells train = draw(simulator, SimulatedFile::atlas, 0, 1500);
  const SimulatedCells test = draw(simulator, SimulatedFile::atlas, 1500, 500);
  const SimulatedCells shifted = draw(simulator, SimulatedFile::shifted, 0, 500);
  const double within = centroid_accuracy(train, test, 8);
  EXPECT_GT(within, 0.7);
  EXPECT_LT(within, 0.95);
  const double across = centroid_accuracy(train, shifted, 8);
  EXPECT_LT(across, within - 0.05);
  EXPECT_GT(across, 0.35);
  EXPECT_LT(neighbour_accuracy(train, test), within - 0.1);
  EXPECT_LT(neighbour_accuracy(train, shifted), 0.6);
}

// With nothing but the agreement of two programs, means say nothing.
TEST(Simulator, SignalZeroLeavesOnlyTheLineages) {
  const Simulator simulator({.types = 2, .signal = 0});
  const SimulatedCells train = draw(simulator, SimulatedFile::atlas, 0, 1000);
  const SimulatedCells test = draw(simulator, SimulatedFile::atlas, 1000, 1000);
  const double share = simulator.proportions(SimulatedFile::atlas)[0];
  EXPECT_NEAR(centroid_accuracy(train, test, 2), 0.5, std::abs(share - 0.5) + 0.08);
}

TEST(Simulator, RefusesWhatItCannotMake) {
  const auto refused = [](SimulateOptions options, const std::string& part) {
    try {
      Simulator simulator(options);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.code(), "E-SIMULATE");
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused({.types = 17}, "types must lie between 2 and 16, it is 17");
  refused({.types = 1}, "types");
  refused({.genes = 299}, "genes");
  refused({.genes = 1201}, "genes");
  refused({.cells = 0}, "cells");
  refused({.donors = 0}, "donors");
  refused({.signal = std::nan("")}, "signal");
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(SimulateFiles, WritesTheCellsOfTheSimulator) {
  TemporaryFolder folder;
  const SimulateOptions options{.cells = 4200, .shifted_cells = 30, .types = 6, .genes = 300};
  simulate_files(ctx(), folder / "sim", options, Overwrite::refuse);
  const Simulator simulator(options);
  const H5ad atlas = H5ad::open(folder / "sim/atlas.h5ad");
  const H5ad shifted = H5ad::open(folder / "sim/shifted.h5ad");
  EXPECT_EQ(atlas.n_obs(), 4200);  // more than one chunk
  EXPECT_EQ(shifted.n_obs(), 30);
  EXPECT_THAT(atlas.obs().columns(),
              ::testing::ElementsAre("cell_type", "donor_id", "batch", "condition", "n_counts"));
  EXPECT_EQ(atlas.var().index()[0], "CD3D");
  EXPECT_EQ(atlas.var().read("gene_id").text(0), "ENSG00000167286");
  EXPECT_EQ(atlas.var().read("gene_class").text(0), "marker");
  EXPECT_EQ(atlas.obs().index()[4199], "atlas_4199");

  const SimulatedCells want = draw(simulator, SimulatedFile::atlas, 4090, 20);
  SparseRows rows;
  RowReader(atlas, "X").read(4090, 20, rows);
  EXPECT_EQ(rows.column, want.counts.column);
  EXPECT_EQ(rows.value, want.counts.value);
  const Column type = atlas.obs().read("cell_type"), total = atlas.obs().read("n_counts");
  const Column donor = atlas.obs().read("donor_id"), batch = atlas.obs().read("batch");
  for (size_t c = 0; c < 20; ++c) {
    const auto row = static_cast<int64_t>(4090 + c);
    EXPECT_EQ(type.text(row), simulator.types()[static_cast<size_t>(want.type[c])].name);
    EXPECT_EQ(total.text(row), std::to_string(want.total[c]));
    EXPECT_EQ(donor.text(row), simulator.donor_name(SimulatedFile::atlas, want.donor[c]));
    EXPECT_EQ(batch.text(row), simulator.batch_name(SimulatedFile::atlas, want.donor[c]));
  }
  EXPECT_EQ(shifted.obs().read("condition").text(0), "stimulated");
}

TEST(SimulateFiles, KeepsWhatIsThere) {
  TemporaryFolder folder;
  write_file(folder / "shifted.h5ad", "mine", Overwrite::refuse);
  try {
    simulate_files(ctx(), folder / "", {.cells = 10, .shifted_cells = 10}, Overwrite::refuse);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), "E-EXISTS");
  }
  EXPECT_TRUE(bytes_of(folder / "shifted.h5ad") == "mine");
  EXPECT_FALSE(std::filesystem::exists(folder / "atlas.h5ad"));
  simulate_files(ctx(), folder / "", {.cells = 10, .shifted_cells = 10}, Overwrite::replace);
  EXPECT_EQ(H5ad::open(folder / "shifted.h5ad").n_obs(), 10);
}

}  // namespace
}  // namespace scgraft
