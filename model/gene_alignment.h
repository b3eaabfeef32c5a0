// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace scgraft {

// What identifies an order of genes: the SHA-256 of the names, one a line. Kept with what was
// trained, since a network cannot tell one order from another.
std::string gene_order_fingerprint(std::span<const std::string> genes);

// Expression of a file in the order of a model's genes: missing ones are 0, others are dropped. Of
// columns with the same name the first is used, of genes with the same name too.
class GeneAlignment {
 public:
  // `reference` is used by the constructor only.
  //   reference  the genes of the model in its order
  //   genes      [columns] names of the matrix's columns, matched exactly
  //   file       name for messages
  //   min_share  of the model's genes that the file must have
  // Throws DataError: E-GENE-NONE when no gene of the model is there, E-GENE-FEW when fewer than
  // min_share of them are.
  GeneAlignment(std::span<const std::string> reference, std::span<const std::string> genes,
                const std::string& file, double min_share);

  int64_t columns() const { return static_cast<int64_t>(position_.size()); }
  int64_t genes() const { return genes_; }
  int64_t matched() const { return matched_; }  // genes of the model that the file has
  // [columns] where in the model's order, -1: not used.
  std::span<const int32_t> positions() const { return position_; }

  // One cell's expression in the model's order.
  //   aligned  [genes()], overwritten
  void align(std::span<const int32_t> columns, std::span<const float> values,
             std::span<float> aligned) const;

 private:
  int64_t genes_;
  std::vector<int32_t> position_;  // see positions()
  int64_t matched_ = 0;
};

}  // namespace scgraft
