// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "io/checkpoint.h"

namespace scgraft {

// A checkpoint as the source of a network's parameters. It keeps account, so that no tensor is
// lost in silence: what the network asked for and the file does not have, has in another shape, or
// has beside it.
class CheckpointSource {
 public:
  // canonical: the network's name of a tensor, for its name in the file. Where several names of
  // the file become one, the one that is canonical serves.
  CheckpointSource(const Checkpoint& file, DType dtype,
                   const std::function<std::string(const std::string&)>& canonical);

  bool has(const std::string& name) const { return names_.contains(name); }
  // What the file calls it; the name itself when it has no such tensor.
  const std::string& name_in_file(const std::string& name) const;
  // Length of its first dimension, 0 for a scalar. Throws ModelError when it is missing.
  int64_t rows(const std::string& name) const;
  // The same of its second dimension.
  int64_t columns(const std::string& name) const;

  // As a ParameterSource: shares the mapped file where types agree; integers stay what they are.
  // Empty when the file has no such
  // tensor; check() throws then, and no network may be used before it has been called.
  Tensor take(const std::string& name, const Shape& shape);

  // Throws ModelError naming the first five tensors that are missing (E-TENSOR-MISSING), or the
  // first of another shape than `sizes`, a file of the model's sizes, asks for (E-TENSOR-SHAPE).
  void check(const std::string& sizes) const;
  // Of what nothing took, names in the file of what is known to be without use. Throws ModelError
  // (E-TENSOR-EXTRA) naming the first five of the others that nobody claims, when there are any.
  //   without_use  of the network's name
  //   claims       of the name in the file; may be empty
  std::vector<std::string> ignored(const std::function<bool(const std::string&)>& without_use,
                                   const std::function<bool(const std::string&)>& claims) const;

 private:
  const Checkpoint& file_;
  DType dtype_;
  std::map<std::string, std::string> names_;  // canonical, in the file
  std::set<std::string> used_, missing_;
  std::string misshaped_;
};

}  // namespace scgraft
