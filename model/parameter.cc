// SPDX-License-Identifier: Apache-2.0
#include "model/parameter.h"

#include "runtime/random.h"

namespace scgraft {

Parameter& ParameterSet::add(std::string name, Tensor value) {
  require(!by_name_.contains(name), "parameter ", name, " exists already");
  parameters_.push_back(Parameter{std::move(name), std::move(value), {}});
  by_name_[parameters_.back().name] = &parameters_.back();
  return parameters_.back();
}

Parameter* ParameterSet::find(const std::string& name) {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

std::vector<Parameter*> ParameterSet::all() {
  std::vector<Parameter*> out;
  for (Parameter& p : parameters_) out.push_back(&p);
  return out;
}

int64_t ParameterSet::numel() const {
  int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.value.numel();
  return n;
}

void make_trainable(const std::vector<Parameter*>& parameters) {
  for (Parameter* p : parameters) p->grad = Tensor(p->value.shape(), p->value.dtype());
}

void freeze(const std::vector<Parameter*>& parameters) {
  for (Parameter* p : parameters) p->grad = Tensor();
}

void initialise_uniform(Parameter& parameter, double bound, uint64_t seed) {
  // FNV-1a: a stable number per name, so that initial values do not depend on creation order.
  uint64_t hash = 1469598103934665603ull;
  for (unsigned char c : parameter.name) hash = (hash ^ c) * 1099511628211ull;
  RandomStream stream(seed, RandomUse::initialise, static_cast<uint32_t>(hash),
                      static_cast<uint32_t>(hash >> 32));
  visit_real(parameter.value.dtype(), [&]<class T>(Type<T>) {
    T* data = parameter.value.as<T>();
    for (int64_t i = 0; i < parameter.value.numel(); ++i)
      data[i] = static_cast<T>((2.0 * stream.uniform() - 1.0) * bound);
  });
}

void fill(Parameter& parameter, double value) {
  visit_real(parameter.value.dtype(), [&]<class T>(Type<T>) {
    T* data = parameter.value.as<T>();
    for (int64_t i = 0; i < parameter.value.numel(); ++i) data[i] = static_cast<T>(value);
  });
}

}  // namespace scgraft
