// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <string>

#include "adapters/scpeft.h"

// What readers of scPEFT's files have in common; for adapters/scpeft*.cc.
namespace scgraft::scpeft {

// Throws ModelError (E-SCPEFT).
[[noreturn]] void fail(const Checkpoint& file, const std::string& message);

// Our parameters by the arrays of the file that hold them.
class Arrays {
 public:
  // out.adapter is there already.
  explicit Arrays(ScpeftAdapter& out);
  void add(const std::string& theirs, const std::string& ours);
  // The same of the arrays of other forms.
  void add(const std::string& theirs, const std::string& ours, ScpeftAdapter::Array::Form form);
  // theirs: what is in front of "1.weight", "1.bias", "2.weight" and "2.bias".
  void add_bottleneck(const std::string& theirs, const std::string& ours);
  // Fills the parameters from the file, and takes down the shapes that the arrays have there: those
  // of the parameters one below the other, perhaps with a 1 in front.
  void fill(const Checkpoint& file);

 private:
  ScpeftAdapter& out_;
  std::map<std::string, Parameter*> ours_;
};

// scPEFT bounds the rotations of OFT in every forward pass, with blocks of width n by
//
//   |R_b| <= oft_constraint(n) / sqrt(blocks)     (Frobenius norm; a larger R_b is scaled)
//
// Our bound is of the skew-symmetric part of R_b, which is not longer: what one keeps inside, the
// other finds inside.
double oft_constraint(int64_t n);

// Of an array of prefix rows, [1, rows, dim] or [rows, dim].
int64_t prefix_rows(const Checkpoint& file, const std::string& name);
// Width of the bottleneck in front of whose first weight `theirs` stands, as a part of the model's.
double width_of(const Checkpoint& file, const std::string& theirs, const Backbone& backbone);

}  // namespace scgraft::scpeft
