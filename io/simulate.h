// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/gene_symbols.h"
#include "io/matrix.h"
#include "io/output.h"
#include "runtime/context.h"

namespace scgraft {

// The two files of a simulated study: a reference, and new cells in another condition.
enum class SimulatedFile { atlas, shifted };

struct SimulateOptions {
  int64_t cells = 4000;          // of the atlas, 1 to 2^31
  int64_t shifted_cells = 2000;  // of the shifted file
  int types = 8;                 // 2 to 16, the first ones of blood_cell_types()
  int64_t genes = 1200;          // 300 to 1200, the first ones of human_genes()
  int donors = 4;                // in each file, 1 to 64; the files share none
  uint64_t seed = 0;
  // Size of the effects that tell related types apart; 1 is hard but learnable, 2 is easy.
  double signal = 1.0;
  // Size of everything that differs between the files other than depth; 0: only new donors.
  double shift = 1.0;
  // Median counts of a cell of the atlas, over the simulated genes; 10 to 1e6.
  double depth = 2200;
};

// What is known about simulated cells, beside their counts.
struct SimulatedCells {
  SparseRows counts;           // [cells, genes]
  std::vector<int32_t> type;   // index into Simulator::types()
  std::vector<int32_t> donor;  // 0 to donors - 1, within the file
  std::vector<int64_t> total;  // counts per cell
};

// Counts of a study that looks like droplet sequencing of human blood, with the real names of the
// genes. Types come in pairs of relatives that share most markers. Every count is a function of
// (options, file, cell, gene): chunks and threads change nothing, any cell can be made alone.
//
// Cell c of type t, lineage l, donor d has the log expression, gene by gene,
//
//   eta = base + L[l] + signal * a * T[t] + signal * q(t) z_c B[pair] + signal * z_c A[pair]
//       + sum_k y_ck N[k] + D[d] + E[batch] + h_c u_c r_t I + s (S[t] + S0)
//
//   s        0 in the atlas, `shift` in the shifted file
//   base     by gene class: normal with the class's mean and spread (log scale)
//   L, T     2.2 on the markers of the lineage (more for platelets and plasma cells);
//            0.9 on those of the type, and normal(0, 0.25) on a twelfth of the other genes
//   A, B     two disjoint sets of 14 genes per pair of relatives, 0.9 each; z_c = -1 or 1 by coin
//            flip. q(t) = 1 for one relative and -1 for the other: both sets go up and down in
//            both types, and only their agreement tells the types apart, which no linear rule on
//            single genes sees
//   N, y     nuisance programs shared by all types: cell cycle (15 % of the cells, 0.5 to 1.5),
//            stress (log-normal), and four programs of 60 genes, normal(0, 0.35), with normal y
//   D, E     normal(0, 0.15) per donor, normal(0, 0.1) per batch; donor d is in batch d mod 2
//   a        1 - 0.25 s; markers of the type fade
//   I, h     interferon genes, 0.8 to 2.6 each; h_c = s in the shifted file, in the atlas 0.3 in
//            one cell of five and else 0; r_t of the type (monocytes most), u_c in [0.5, 1.5]
//   S, S0    normal(0, 0.25) on a tenth of the genes of each type; normal(0, 0.15) on all genes
//
// and the counts are, with p = softmax(eta) over the genes and q the mean p of the file's types
// without any cell's own part,
//
//   mu    = depth_c * ((1 - m) p + m q) * exp(0.35 e - 0.35^2 / 2),  e normal
//   count = Poisson(mu), and 0 with probability 0.3 exp(-mu)
//
//   depth    log-normal, median `depth` and spread 0.35; in the shifted file 0.6 of it and 0.45
//   m        free RNA of other cells: 0.03 + 0.09 s
//   types    drawn with probabilities proportional to exp(0.5 normal); in the shifted file to
//            exp(0.9 normal), drawn anew
//
// Types, donors, depth, z, y, u, e and the Poisson draw come from RandomUse::simulate with a
// counter per (file, cell) or per (file, cell, gene). A Poisson mean above 40 is drawn as a
// rounded normal.
class Simulator {
 public:
  // ConfigError E-SIMULATE for an option out of its range.
  explicit Simulator(const SimulateOptions& options);

  const SimulateOptions& options() const { return options_; }
  int64_t n_cells(SimulatedFile file) const;
  std::span<const GeneEntry> genes() const;
  std::span<const BloodCellType> types() const;
  std::string donor_name(SimulatedFile file, int32_t donor) const;  // "A1", ..., "S1", ...
  std::string batch_name(SimulatedFile file, int32_t donor) const;  // "A-run1", "S-run2"
  static const char* condition(SimulatedFile file);                 // "control", "stimulated"
  // Probabilities of the types, sum 1.
  std::span<const double> proportions(SimulatedFile file) const;

  // Overwrites `out` with cells [first, first + count); counts.first_row = first.
  void cells(Context& ctx, SimulatedFile file, int64_t first, int64_t count,
             SimulatedCells& out) const;

 private:
  // Sparse log effects: values of some genes.
  struct Program {
    std::vector<int32_t> gene;
    std::vector<float> value;
    void add(int32_t g, double v) {
      gene.push_back(g);
      value.push_back(static_cast<float>(v));
    }
    void add_to(std::vector<float>& eta, double scale) const;
  };
  // All that cells of one file share.
  struct Study {
    std::vector<std::vector<float>> type;   // [types][genes] eta without the cell's own part
    std::vector<std::vector<float>> donor;  // [donors][genes] donor and batch
    std::vector<double> proportions;
    std::vector<float> ambient;  // [genes], sum 1
    double depth = 0, depth_spread = 0, ambient_share = 0;
  };
  struct OneCell;

  const Study& study(SimulatedFile file) const { return studies_[static_cast<size_t>(file)]; }
  std::vector<float> base() const;
  std::vector<float> type_effects(int t, double fade) const;
  Study make_study(SimulatedFile file) const;
  void draw_cell(SimulatedFile file, int64_t cell, std::vector<float>& eta, OneCell& out) const;

  SimulateOptions options_;
  std::vector<Program> agree_, flip_;  // A and B of every pair of types
  Program interferon_, cycle_, stress_;
  std::vector<Program> nuisance_;
  std::vector<Study> studies_;
};

// Writes <folder>/atlas.h5ad and <folder>/shifted.h5ad, X as counts, in memory of a chunk.
//   obs  cell_type, donor_id, batch, condition (categorical), n_counts (int64)
//   var  index: symbols; gene_id: Ensembl identifiers, gene_class (categorical)
// Makes the folder. Throws ConfigError (E-SIMULATE, E-EXISTS) and StorageError.
void simulate_files(Context& ctx, const std::string& folder, const SimulateOptions& options,
                    Overwrite overwrite);

}  // namespace scgraft
