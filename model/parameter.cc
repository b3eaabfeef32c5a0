// SPDX-License-Identifier: Apache-2.0
#include "model/parameter.h"

#include <algorithm>

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
  for (Parameter* p : parameters)
    p->grad = Tensor(p->value.shape(), p->value.dtype(), p->value.device());
}

void freeze(const std::vector<Parameter*>& parameters) {
  for (Parameter* p : parameters) p->grad = Tensor();
}

bool move_to(const std::vector<Parameter*>& parameters, Device device) {
  bool moved = false;
  for (Parameter* p : parameters)
    for (Tensor* tensor : {&p->value, &p->grad}) {
      if (tensor->empty() || tensor->device() == device) continue;
      *tensor = tensor->to(device);
      moved = true;
    }
  return moved;
}

ConstTensorView HostCopies::view(const Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor.view();
  copies_.push_back(tensor.to(Device::cpu()));
  return std::as_const(copies_.back()).view();
}

namespace {

// Calls body with the elements in host memory, and writes them where the tensor is.
template <class Body>
void overwrite(Tensor& tensor, Body&& body) {
  Tensor copy_of_it;
  if (!tensor.device().is_cpu()) copy_of_it = Tensor(tensor.shape(), tensor.dtype());
  const TensorView host = copy_of_it.empty() ? tensor.view() : copy_of_it.view();
  visit_real(host.dtype(), [&]<class T>(Type<T>) { body(host.as<T>(), host.numel()); });
  if (!copy_of_it.empty()) copy(host, tensor.view());
}

}  // namespace

void initialise_uniform(Parameter& parameter, double bound, uint64_t seed) {
  // FNV-1a: a stable number per name, so that initial values do not depend on creation order.
  uint64_t hash = 1469598103934665603ull;
  for (unsigned char c : parameter.name) hash = (hash ^ c) * 1099511628211ull;
  RandomStream stream(seed, RandomUse::initialise, static_cast<uint32_t>(hash),
                      static_cast<uint32_t>(hash >> 32));
  overwrite(parameter.value, [&]<class T>(T* data, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      data[i] = static_cast<T>((2.0 * stream.uniform() - 1.0) * bound);
  });
}

void fill(Parameter& parameter, double value) {
  overwrite(parameter.value,
            [&]<class T>(T* data, int64_t n) { std::fill_n(data, n, static_cast<T>(value)); });
}

}  // namespace scgraft
