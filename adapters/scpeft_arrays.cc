// SPDX-License-Identifier: Apache-2.0
#include "adapters/scpeft_arrays.h"

#include <cmath>

#include "kernels/rotation.h"

namespace scgraft {
namespace scpeft {

void fail(const Checkpoint& file, const std::string& message) {
  ModelError error(cat(file.file(), ": ", message), "E-SCPEFT");
  error.set_where(file.file());
  throw error;
}

namespace {

using Form = ScpeftAdapter::Array::Form;

// R [blocks, n, n] as our rotations are stored: bounded, what is above the diagonal of the
// skew-symmetric part of each block, row by row. In f64.
Tensor skew_of(const Tensor& rotation) {
  const Tensor wide = rotation.converted(DType::f64);
  const auto r = wide.as<double, 3>();
  const int64_t blocks = r.dim(0), n = r.dim(1);
  const double radius = oft_constraint(n) / std::sqrt(static_cast<double>(blocks));
  Tensor out({blocks, n * (n - 1) / 2}, DType::f64);
  const auto skew = out.as<double, 2>();
  for (int64_t b = 0; b < blocks; ++b) {
    double square = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) square += r(b, i, j) * r(b, i, j);
    const double scale = square > radius * radius ? radius / std::sqrt(square) : 1;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j)
        skew(b, triangle_index(i, j, n)) = scale * (r(b, i, j) - r(b, j, i)) / 2;
  }
  return out;
}

void fill_rotation(const Checkpoint& file, const std::string& name,
                   const ScpeftAdapter::Array& array) {
  const Shape want = array.parts.front()->value.shape();
  const Shape& shape = array.shape;
  if (shape.rank() != 3 || shape[1] != shape[2] ||
      want != Shape{shape[0], shape[1] * (shape[1] - 1) / 2})
    fail(file, cat(name, " is ", shape, ", not what the first layer with OFT has"));
  const Tensor skew = skew_of(file.tensor(name));
  for (Parameter* p : array.parts) copy(skew.converted(p->value.dtype()).view(), p->value.view());
}

void fill_array(const Checkpoint& file, const std::string& name, ScpeftAdapter::Array& array) {
  const Tensor& from = file.tensor(name);
  array.shape = from.shape();
  if (array.form == Form::rotation) return fill_rotation(file, name, array);
  int64_t rows = 0;
  for (const Parameter* p : array.parts) rows += p->value.dim(0);
  if (array.form == Form::same) rows = array.parts.front()->value.dim(0);
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
    if (array.form == Form::rows) row += p->value.dim(0);
  }
}

}  // namespace

Arrays::Arrays(ScpeftAdapter& out) : out_(out) {
  for (Parameter* p : out.adapter->parameters()) ours_[p->name] = p;
}

void Arrays::add(const std::string& theirs, const std::string& ours) {
  out_.arrays[theirs].parts.push_back(ours_.at(ours));
}

void Arrays::add(const std::string& theirs, const std::string& ours, Form form) {
  add(theirs, ours);
  out_.arrays[theirs].form = form;
}

void Arrays::add_bottleneck(const std::string& theirs, const std::string& ours) {
  for (const char* part : {"1.weight", "1.bias", "2.weight", "2.bias"})
    add(theirs + part, cat(ours, ".fc", part));
}

void Arrays::fill(const Checkpoint& file) {
  for (auto& [name, array] : out_.arrays) fill_array(file, name, array);
}

double oft_constraint(int64_t n) { return 1e-5 * static_cast<double>(n * n); }

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
  if (name.ends_with(".Wqkv.R")) return true;
  for (const char* part : {".lora_A", ".lora_B", ".hra_u", ".space_adapter.",
                           "value_encoder.adapter.", ".adapter_embeddings", "Space_Adapter.D_fc",
                           ".MLP_Adapter.D_fc", ".Encoder_", ".prompt_embeddings"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

}  // namespace scgraft
