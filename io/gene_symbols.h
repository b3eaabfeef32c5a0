// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace scgraft {

// What a gene is known for; decides how strongly and where simulated cells express it.
enum class GeneClass {
  marker,         // of blood cell types and their neighbours
  interferon,     // switched on by interferon
  housekeeping,   // in every cell
  ribosomal,      // RPL*, RPS*
  mitochondrial,  // MT-*
  hla,            // HLA-*
  cycle,          // dividing cells
  stress,         // immediate early genes, heat shock
  other,          // members of large families: ZNF*, TMEM*, SLC*, KRT*, ...
};

struct GeneEntry {
  std::string symbol;   // approved HGNC symbol, "CD3D"
  std::string ensembl;  // "ENSG00000167286"
  GeneClass kind = GeneClass::other;
};

// 1200 real human genes, markers first, no symbol twice; every symbol is in the vocabulary of the
// published scGPT models. Source: HGNC complete set (symbols and Ensembl identifiers).
std::span<const GeneEntry> human_genes();

// A type of blood cell and what tells it from others.
struct BloodCellType {
  std::string_view name;     // "CD4 naive T"
  std::string_view lineage;  // "T"
  std::vector<std::string_view> lineage_markers;
  std::vector<std::string_view> markers;  // against the other types of its lineage
  double interferon = 1;                  // strength of its answer to interferon
};

// 16 types; 2k and 2k+1 are relatives for k <= 4, so any even number keeps pairs together.
// All markers are in human_genes(). Source: textbook immunology.
std::span<const BloodCellType> blood_cell_types();

}  // namespace scgraft
