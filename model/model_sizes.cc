// SPDX-License-Identifier: Apache-2.0
#include "model/model_sizes.h"

#include "runtime/error.h"

namespace scgraft {

ModelSizes::ModelSizes(const nlohmann::json& values, std::string file)
    : values_(values), file_(std::move(file)) {
  if (!values.is_object()) fail("expected a JSON object of model sizes");
}

void ModelSizes::fail(const std::string& message) const {
  ModelError error(cat(file_, ": ", message), "E-MODEL-CONFIG");
  error.set_where(file_);
  throw error;
}

void ModelSizes::read(const char* key, int64_t& to) const {
  if (!values_.contains(key) || values_[key].is_null()) return;
  if (!values_[key].is_number_integer())
    fail(cat("\"", key, "\" must be a whole number, got ", values_[key].dump()));
  to = values_[key].get<int64_t>();
}

void ModelSizes::read(const char* key, double& to) const {
  if (!values_.contains(key) || values_[key].is_null()) return;
  if (!values_[key].is_number())
    fail(cat("\"", key, "\" must be a number, got ", values_[key].dump()));
  to = values_[key].get<double>();
}

void ModelSizes::read(const char* key, bool& to) const {
  if (!values_.contains(key) || values_[key].is_null()) return;
  if (!values_[key].is_boolean())
    fail(cat("\"", key, "\" must be true or false, got ", values_[key].dump()));
  to = values_[key].get<bool>();
}

void ModelSizes::expect(const char* key, const char* want) const {
  if (values_.contains(key) && values_[key].is_string() && values_[key].get<std::string>() != want)
    fail(cat("\"", key, "\" is ", values_[key].dump(), "; this version runs ", want));
}

void ModelSizes::positive(const char* key, int64_t value, int64_t most) const {
  if (value < 1 || value > most) fail(cat(key, " is ", value, "; it must be 1 to ", most));
}

void ModelSizes::probability(const char* key, double value) const {
  if (!(value >= 0 && value < 1))
    fail(cat(key, " is ", value, "; it must be at least 0 and below 1"));
}

}  // namespace scgraft
