// SPDX-License-Identifier: Apache-2.0
// Writes what read_back.py reads:
//   write_samples create FOLDER        created.h5ad, and sim/ with two simulated files
//   write_samples annotate IN OUT      every kind of element added to a copy of IN
#include <algorithm>
#include <cstdio>
#include <exception>
#include <numeric>
#include <string>

#include "io/h5ad_creator.h"
#include "io/h5ad_writer.h"
#include "io/simulate.h"

namespace scgraft {
namespace {

// 7 cells, 4 genes; cell i has the count i + 1 of gene i mod 4. In pieces of 3 cells.
void create(const std::string& folder) {
  H5adCreator out(folder + "/created.h5ad", Overwrite::replace, {.compression = {.gzip = 1}});
  out.append_var(
      {.index = {"CD3D", "LYZ", "MS4A1", "ACTB"},
       .columns = {
           {.name = "gene_id", .values = Strings{"ENSG1", "ENSG2", "ENSG3", ""}, .missing = {}}}});
  for (int64_t first = 0; first < 7; first += 3) {
    SparseRows rows{.first_row = first, .columns = 4, .offsets = {0}, .column = {}, .value = {}};
    Table cells;
    Categorical type{.codes = {}, .categories = {"B", "T"}, .ordered = false};
    Strings note;
    Integers total;
    Reals score;
    Booleans good;
    for (int64_t i = first; i < std::min<int64_t>(first + 3, 7); ++i) {
      rows.column.push_back(static_cast<int32_t>(i % 4));
      rows.value.push_back(static_cast<float>(i + 1));
      rows.offsets.push_back(static_cast<int64_t>(rows.column.size()));
      cells.index.push_back(cat("cell", i));
      type.codes.push_back(static_cast<int32_t>(i % 3) - 1);
      note.push_back(cat("n\xC3\xB6te ", i));
      total.push_back(i + 1);
      score.push_back(static_cast<double>(i) / 4);
      good.values.push_back(i % 2 == 0);
    }
    cells.columns = {{.name = "type", .values = type, .missing = {}},
                     {.name = "note", .values = note, .missing = {}},
                     {.name = "total", .values = total, .missing = {}},
                     {.name = "score", .values = score, .missing = {}},
                     {.name = "good", .values = good, .missing = {}}};
    out.append_rows(rows);
    out.append_obs(cells);
  }
  out.commit();
  Context ctx;
  simulate_files(ctx, folder + "/sim", {.cells = 60, .shifted_cells = 40, .types = 6},
                 Overwrite::replace);
}

void annotate(const std::string& in, const std::string& path) {
  H5adWriter out(in, path, Overwrite::replace);
  const auto n = static_cast<size_t>(out.n_obs());
  std::vector<int32_t> codes(n);
  std::vector<float> conf(n);
  std::vector<int64_t> number(n);
  std::vector<std::string> text(n);
  std::vector<uint8_t> good(n);
  for (size_t i = 0; i < n; ++i) {
    codes[i] = static_cast<int32_t>(i % 4) - 1;
    conf[i] = static_cast<float>(i) / 8;
    number[i] = (int64_t{1} << 40) + static_cast<int64_t>(i);
    text[i] = cat("\xCE\xB1", i);
    good[i] = i % 2;
  }
  out.add_categorical("sg_label", codes, {"z last", "a first", "\xC3\xA9"});
  out.add_real("sg_conf", conf);
  out.add_integer("sg_number", number);
  out.add_strings("sg_text", text);
  out.add_booleans("sg_good", good);
  out.add_var_booleans("sg_in_model",
                       std::vector<uint8_t>(static_cast<size_t>(out.n_vars()), uint8_t{1}));
  std::vector<float> embedding(n * 3);
  std::iota(embedding.begin(), embedding.end(), 0.f);
  out.add_obsm("X_sg", 3, embedding);
  out.add_obsm_frame("sg_probabilities", {"B", "T"},
                     std::span<const float>(embedding).first(2 * n));
  out.add_varm("sg_genes", 1, std::vector<float>(static_cast<size_t>(out.n_vars()), 2.f));
  out.add_uns("sg", {{"version", "0.1.0"},
                     {"seed", 7},
                     {"rate", 0.5},
                     {"exact", true},
                     {"names", {"a", "b"}},
                     {"sizes", {1, 2}},
                     {"base", {{"sha256", "ab12"}}}});
  out.add_uns_strings("sg_label_colors", {"#ff0000", "#00ff00", "#0000ff"});
  out.commit();
}

}  // namespace
}  // namespace scgraft

int main(int argc, char** argv) {
  try {
    const std::string action = argc > 1 ? argv[1] : "";
    if (action == "create" && argc == 3) return scgraft::create(argv[2]), 0;
    if (action == "annotate" && argc == 4) return scgraft::annotate(argv[2], argv[3]), 0;
    std::fprintf(stderr, "usage: write_samples create FOLDER | annotate IN OUT\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 2;
}
