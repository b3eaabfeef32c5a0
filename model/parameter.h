// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/tensor.h"

namespace scgraft {

// One trained tensor of a model.
struct Parameter {
  std::string name;  // the checkpoint's name, e.g. "transformer_encoder.layers.3.linear1.weight"
  Tensor value;
  Tensor grad;  // empty <=> frozen: what has no gradient buffer cannot be trained by mistake
  bool trainable() const { return !grad.empty(); }
};

// Owns parameters under unique names, in the order they were added; pointers stay valid.
class ParameterSet {
 public:
  ParameterSet() = default;
  ParameterSet(const ParameterSet&) = delete;
  ParameterSet& operator=(const ParameterSet&) = delete;

  // Throws Error when the name is taken.
  Parameter& add(std::string name, Tensor value);
  Parameter* find(const std::string& name);  // null when absent
  std::vector<Parameter*> all();

  int64_t numel() const;  // elements of all parameters

 private:
  std::deque<Parameter> parameters_;
  std::unordered_map<std::string, Parameter*> by_name_;
};

// Gives every parameter a zero gradient of its value's type, or takes it away.
void make_trainable(const std::vector<Parameter*>& parameters);
void freeze(const std::vector<Parameter*>& parameters);

// Moves values and gradients to a device; those that are there already stay where they are.
// Returns whether anything moved.
bool move_to(const std::vector<Parameter*>& parameters, Device device);

// Views of tensors in host memory, for files: the tensors themselves, or copies kept here.
class HostCopies {
 public:
  ConstTensorView view(const Tensor& tensor);

 private:
  std::deque<Tensor> copies_;
};

// Initial values of torch.nn.Linear: uniform in +-1/sqrt(fan_in), a function of (seed, name).
void initialise_uniform(Parameter& parameter, double bound, uint64_t seed);
void fill(Parameter& parameter, double value);

}  // namespace scgraft
