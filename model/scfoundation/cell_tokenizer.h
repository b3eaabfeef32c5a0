// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/matrix.h"
#include "model/gene_alignment.h"
#include "model/tokenised_cells.h"
#include "runtime/context.h"

namespace scgraft {

// The genes of a model in its order, from the table that is published with it,
// OS_scRNA_gene_index.19264.tsv: a head "gene_name<TAB>index", then a line per gene, the index
// counting from 0. Throws ModelError: E-GENE-ORDER when it is no such table, an index is not the
// one of its line, a gene is there twice, or their number is not `genes`.
std::vector<std::string> read_scfoundation_genes(const std::string& path, int64_t genes);

// What the entry T of a cell is, the sequencing depth that it asks for.
struct TargetDepth {
  enum class Kind {
    fixed,   // "t4": T = 4
    factor,  // "f2": T = log10(2 total)
    shift,   // "a1": T = log10(total) + 1
    bulk,    // "bulk": T = S = log10(sum of the genes' entries)
  };
  Kind kind = Kind::fixed;
  double value = 4;

  // Reads a text as above. Throws ConfigError (E-CONFIG).
  static TargetDepth parse(std::string_view text);
};

struct ScfoundationTokenOptions {
  TargetDepth target = {};
  bool normalised = false;  // the values are ln(1 + x / total 1e4) already
  double min_share = 0.1;   // of the model's genes that a file must have
  float pad_value = 103;    // of what stands for the genes of a cell without any
};

// Cells as scFoundation's entries: the model's genes in its order, then T, then S.
//
//   gene  ln(1 + x / total 1e4), total over the model's genes
//   S     log10(total), of normalised values of their sum
//   T     see TargetDepth
//
// A profile of many cells (bulk) asks for its own depth. That is the sum of what the network reads,
// as in the published script, which scales profiles to the median total of their file where this
// scales all to 1e4: a profile is the same whatever is beside it. "a0" has log10(total) for both.
//
// The tokens of a cell are its genes above 0, T and S; their id is the number of the entry. T and S
// are tokens whatever they are: the published script leaves out what is not above 0, and would take
// another row for S in a cell whose total is 1 or less. All arithmetic is f64, rounded to f32 once.
// Source: scFoundation (Hao et al. 2024), its script for embeddings.
class ScfoundationTokenizer {
 public:
  // `reference` is used by the constructor only; see GeneAlignment, which throws.
  ScfoundationTokenizer(std::span<const std::string> reference, std::span<const std::string> genes,
                        std::string file, const ScfoundationTokenOptions& options = {});

  int64_t columns() const { return alignment_.columns(); }
  int64_t entries() const { return alignment_.genes() + 2; }
  int64_t matched() const { return alignment_.matched(); }  // genes of the model in the file
  // [columns] the entry of each, -1: not used.
  std::span<const int32_t> positions() const { return alignment_.positions(); }

  // All entries of one cell. A cell without expression has zeros, T and S among them.
  //   out  [entries()], overwritten
  void fill(std::span<const int32_t> columns, std::span<const float> values,
            std::span<float> out) const;

  // Overwrites `out` with the tokens of a chunk. Cells without expression of the model's genes are
  // listed in out.empty; for the network they have the id behind the entries, padding, and T and S
  // of 0. Throws DataError: E-VALUES-NEGATIVE, E-VALUES-NONFINITE.
  void tokenise(Context& ctx, const SparseRows& rows, TokenisedCells& out) const;

 private:
  std::string file_;
  ScfoundationTokenOptions options_;
  GeneAlignment alignment_;
};

}  // namespace scgraft
