// SPDX-License-Identifier: Apache-2.0
#include "adapters/scpeft_arrays.h"

namespace scgraft {
namespace scpeft {

void fail(const Checkpoint& file, const std::string& message) {
  ModelError error(cat(file.file(), ": ", message), "E-SCPEFT");
  error.set_where(file.file());
  throw error;
}

namespace {

void fill_array(const Checkpoint& file, const std::string& name, ScpeftAdapter::Array& array) {
  const Tensor& from = file.tensor(name);
  array.shape = from.shape();
  int64_t rows = 0;
  for (const Parameter* p : array.parts) rows += p->value.dim(0);
  if (array.shared) rows = array.parts.front()->value.dim(0);
  const Shape part = array.parts.front()->value.shape();
  const Shape whole = part.rank() == 1 ? Shape{rows} : Shape{rows, part[1]};
  const bool fits =
      from.shape() == whole || (whole.rank() == 2 && from.shape() == Shape{1, whole[0], whole[1]});
  if (!fits) fail(file, cat(name, " is ", from.shape(), ", ", whole, " was wanted"));
  const Tensor same = from.converted(array.parts.front()->value.dtype());
  const ConstTensorView view = std::as_const(same).view().reshape(whole);
  int64_t row = 0;
  for (Parameter* p : array.parts) {
    copy(view.rows(row, row + p->value.dim(0)), p->value.view());
    if (!array.shared) row += p->value.dim(0);
  }
}

}  // namespace

Arrays::Arrays(ScpeftAdapter& out) : out_(out) {
  for (Parameter* p : out.adapter->parameters()) ours_[p->name] = p;
}

void Arrays::add(const std::string& theirs, const std::string& ours) {
  out_.arrays[theirs].parts.push_back(ours_.at(ours));
}

void Arrays::add_shared(const std::string& theirs, const std::string& ours) {
  add(theirs, ours);
  out_.arrays[theirs].shared = true;
}

void Arrays::add_bottleneck(const std::string& theirs, const std::string& ours) {
  for (const char* part : {"1.weight", "1.bias", "2.weight", "2.bias"})
    add(theirs + part, cat(ours, ".fc", part));
}

void Arrays::fill(const Checkpoint& file) {
  for (auto& [name, array] : out_.arrays) fill_array(file, name, array);
}

int64_t prefix_rows(const Checkpoint& file, const std::string& name) {
  const Shape shape = file.tensor(name).shape();
  return shape.rank() < 2 ? 0 : shape[shape.rank() - 2];
}

double width_of(const Checkpoint& file, const std::string& theirs, const Backbone& backbone) {
  return static_cast<double>(file.tensor(theirs + "1.weight").dim(0)) /
         static_cast<double>(backbone.dim());
}

}  // namespace scpeft

bool is_scpeft_tensor(const std::string& name) {
  for (const char* part : {".lora_A", ".lora_B", ".hra_u", ".space_adapter.",
                           "value_encoder.adapter.", ".adapter_embeddings", "Space_Adapter.D_fc",
                           ".MLP_Adapter.D_fc", ".Encoder_", ".prompt_embeddings"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

}  // namespace scgraft
