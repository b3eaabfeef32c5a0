// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>

#include "model/linear.h"
#include "model/norm.h"
#include "model/parameter.h"

namespace scgraft {

// Gives the value of a parameter: from a checkpoint, or freshly initialised.
using ParameterSource = std::function<Tensor(const std::string& name, const Shape& shape)>;

// Makes the parameters of a network one after another, with values from a source.
class ParameterMaker {
 public:
  ParameterMaker(ParameterSet& parameters, const ParameterSource& source)
      : parameters_(parameters), source_(source) {}

  Parameter& parameter(const std::string& name, const Shape& shape) const {
    return parameters_.add(name, source_(name, shape));
  }
  // <name>.weight [out, in] and <name>.bias [out].
  Linear linear(const std::string& name, int64_t in, int64_t out, bool bias = true) const {
    Parameter& weight = parameter(name + ".weight", {out, in});
    return {&weight, bias ? &parameter(name + ".bias", {out}) : nullptr};
  }
  // <name>.weight and <name>.bias [dim].
  LayerNorm norm(const std::string& name, int64_t dim, double eps = 1e-5) const {
    LayerNorm norm;
    norm.gamma = &parameter(name + ".weight", {dim});
    norm.beta = &parameter(name + ".bias", {dim});
    norm.eps = eps;
    return norm;
  }

 private:
  ParameterSet& parameters_;
  const ParameterSource& source_;
};

}  // namespace scgraft
