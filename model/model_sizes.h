// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace scgraft {

// The JSON file of a model's sizes (args.json, config.json), read key by key. Everything throws
// ModelError (E-MODEL-CONFIG) that names the file and the key.
class ModelSizes {
 public:
  // Throws when `values` is no object.
  ModelSizes(const nlohmann::json& values, std::string file);

  // The value of a key; where it is missing or null, `to` stays as it is.
  void read(const char* key, int64_t& to) const;
  void read(const char* key, double& to) const;
  void read(const char* key, bool& to) const;
  // Throws when the key is there and holds another text; says what this version runs.
  void expect(const char* key, const char* want) const;

  // Throws unless 1 <= value <= most.
  void positive(const char* key, int64_t value, int64_t most) const;
  // Throws unless 0 <= value < 1.
  void probability(const char* key, double value) const;
  [[noreturn]] void fail(const std::string& message) const;

 private:
  const nlohmann::json& values_;
  std::string file_;
};

}  // namespace scgraft
