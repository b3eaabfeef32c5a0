// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "io/h5ad_creator.h"
#include "io/simulate.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr int64_t kCellsPerChunk = 4096;

const char* name_of(GeneClass kind) {
  static constexpr const char* kNames[] = {"marker",    "interferon",    "housekeeping",
                                           "ribosomal", "mitochondrial", "hla",
                                           "cycle",     "stress",        "other"};
  return kNames[static_cast<size_t>(kind)];
}

Column column(std::string name, decltype(Column::values) values) {
  return {.name = std::move(name), .values = std::move(values), .missing = {}};
}

Table gene_table(const Simulator& simulator) {
  Table table;
  Strings ids;
  Categorical classes;
  for (int k = 0; k <= static_cast<int>(GeneClass::other); ++k)
    classes.categories.emplace_back(name_of(static_cast<GeneClass>(k)));
  for (const GeneEntry& gene : simulator.genes()) {
    table.index.push_back(gene.symbol);
    ids.push_back(gene.ensembl);
    classes.codes.push_back(static_cast<int32_t>(gene.kind));
  }
  table.columns.push_back(column("gene_id", std::move(ids)));
  table.columns.push_back(column("gene_class", std::move(classes)));
  return table;
}

Table cell_table(const Simulator& simulator, SimulatedFile file, const SimulatedCells& cells) {
  Categorical type{.codes = cells.type, .categories = {}};
  Categorical donor{.codes = cells.donor, .categories = {}};
  Categorical batch, condition;
  for (const BloodCellType& t : simulator.types()) type.categories.emplace_back(t.name);
  const int donors = simulator.options().donors;
  for (int d = 0; d < donors; ++d) donor.categories.push_back(simulator.donor_name(file, d));
  for (int d = 0; d < std::min(donors, 2); ++d)
    batch.categories.push_back(simulator.batch_name(file, d));
  condition.categories.emplace_back(Simulator::condition(file));
  Table table;
  for (size_t c = 0; c < cells.type.size(); ++c) {
    const int64_t cell = cells.counts.first_row + static_cast<int64_t>(c);
    table.index.push_back(cat(file == SimulatedFile::atlas ? "atlas_" : "shifted_", cell));
    batch.codes.push_back(cells.donor[c] % 2);
    condition.codes.push_back(0);
  }
  table.columns.push_back(column("cell_type", std::move(type)));
  table.columns.push_back(column("donor_id", std::move(donor)));
  table.columns.push_back(column("batch", std::move(batch)));
  table.columns.push_back(column("condition", std::move(condition)));
  table.columns.push_back(column("n_counts", Integers(cells.total)));
  return table;
}

void fill(Context& ctx, const Simulator& simulator, SimulatedFile file, H5adCreator& out) {
  out.append_var(gene_table(simulator));
  SimulatedCells cells;
  const int64_t n = simulator.n_cells(file);
  for (int64_t first = 0; first < n; first += kCellsPerChunk) {
    simulator.cells(ctx, file, first, std::min(kCellsPerChunk, n - first), cells);
    out.append_rows(cells.counts);
    out.append_obs(cell_table(simulator, file, cells));
  }
}

}  // namespace

void simulate_files(Context& ctx, const std::string& folder, const SimulateOptions& options,
                    Overwrite overwrite) {
  const Simulator simulator(options);
  make_directory(folder);
  // Both names are claimed before the work, so that a file that exists costs no time.
  const H5adCreatorOptions compressed{.compression = {.gzip = 1}};
  H5adCreator atlas(folder + "/atlas.h5ad", overwrite, compressed);
  H5adCreator shifted(folder + "/shifted.h5ad", overwrite, compressed);
  fill(ctx, simulator, SimulatedFile::atlas, atlas);
  fill(ctx, simulator, SimulatedFile::shifted, shifted);
  atlas.commit();
  shifted.commit();
}

}  // namespace scgraft
