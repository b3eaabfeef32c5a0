// SPDX-License-Identifier: Apache-2.0
#include "model/gene_alignment.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "io/sha256.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

std::string example(std::span<const std::string> names) {
  return names.empty() ? std::string("none") : escaped(names[0], 40);
}

}  // namespace

std::string gene_order_fingerprint(std::span<const std::string> genes) {
  Sha256 digest;
  for (const std::string& gene : genes) {
    digest.update(gene);
    digest.update("\n");
  }
  return digest.finish();
}

GeneAlignment::GeneAlignment(std::span<const std::string> reference,
                             std::span<const std::string> genes, const std::string& file,
                             double min_share)
    : genes_(static_cast<int64_t>(reference.size())), position_(genes.size(), -1) {
  std::unordered_map<std::string_view, int32_t> free;  // genes without a column, with positions
  for (size_t i = 0; i < reference.size(); ++i)
    free.try_emplace(reference[i], static_cast<int32_t>(i));
  for (size_t column = 0; column < genes.size(); ++column) {
    const auto found = free.find(genes[column]);
    if (found == free.end()) continue;
    position_[column] = found->second;
    ++matched_;
    free.erase(found);
  }
  if (matched_ > 0 && static_cast<double>(matched_) >= min_share * static_cast<double>(genes_))
    return;
  DataError error(cat(escaped(file), ": ", matched_, " of the model's ", genes_,
                      " genes are among its ", genes.size(), "; the file names genes such as ",
                      example(genes), ", the model such as ", example(reference)),
                  matched_ == 0 ? "E-GENE-NONE" : "E-GENE-FEW");
  error.set_hint(matched_ == 0 ? "--gene-key names the column of var with the names that the model "
                                 "uses"
                               : "use a file with all measured genes, not one of selected genes");
  error.set_where(file);
  throw error;
}

void GeneAlignment::align(std::span<const int32_t> columns, std::span<const float> values,
                          std::span<float> aligned) const {
  std::fill(aligned.begin(), aligned.end(), 0.f);
  for (size_t k = 0; k < columns.size(); ++k) {
    const int32_t position = position_[static_cast<size_t>(columns[k])];
    if (position >= 0) aligned[static_cast<size_t>(position)] = values[k];
  }
}

}  // namespace scgraft
