// SPDX-License-Identifier: Apache-2.0
#include "app/annotation_output.h"

#include <fmt/core.h>

#include <chrono>
#include <cmath>
#include <filesystem>

#include "runtime/version.h"

namespace scgraft {
namespace {

constexpr const char* kAssigned = "assigned";
constexpr const char* kNoGenes = "no_genes";

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string csv_number(float value) { return std::isnan(value) ? "" : fmt::format("{}", value); }

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec);
}

std::span<const float> floats(const Tensor& tensor) {
  return {tensor.as<float>(), static_cast<size_t>(tensor.numel())};
}

}  // namespace

std::string default_annotation_key(const std::string& adapter) {
  namespace fs = std::filesystem;
  fs::path path = fs::absolute(adapter).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  if (path.filename() == "adapter" && path.has_parent_path()) path = path.parent_path();
  std::string key = path.filename().string();
  for (char& c : key)
    if (!(std::isalnum(static_cast<unsigned char>(c)) || c == '_')) c = '_';
  return key.empty() ? "scgraft" : key;
}

AnnotationOutput::AnnotationOutput(const std::string& input, const std::string& output,
                                   Overwrite overwrite, std::string key)
    : writer_(input, output, overwrite, {.overwrite_slots = overwrite == Overwrite::replace}),
      key_(std::move(key)) {
  if (overwrite == Overwrite::replace || !writer_.has_obs(key_)) return;
  ConfigError error(cat("obs has a column \"", key_, "\" already"), "E-SLOT-EXISTS");
  error.set_hint("--key-added NAME, or --force to replace it");
  throw error;
}

void AnnotationOutput::write(const Annotation& a, Annotator& annotator, const H5ad& file,
                             const Session& session) {
  const std::vector<std::string>& labels = annotator.labels();
  writer_.add_categorical(key_, a.label, labels);
  writer_.add_real(key_ + "_conf", a.confidence);
  writer_.add_real(key_ + "_margin", a.margin);
  writer_.add_real(key_ + "_entropy", a.entropy);
  std::vector<int32_t> status;
  for (const int32_t label : a.label) status.push_back(label < 0 ? 1 : 0);
  writer_.add_categorical(key_ + "_status", status, {kAssigned, kNoGenes});
  writer_.add_categorical(key_ + "_second", a.second, labels);
  if (!a.logistic.empty()) {
    writer_.add_categorical(key_ + "_logreg", a.logistic, labels);
    writer_.add_categorical(key_ + "_knn", a.neighbours, labels);
  }
  writer_.add_obsm_frame(key_ + "_probabilities", labels, floats(a.probabilities));
  writer_.add_obsm("X_" + key_, a.embedding.dim(1), floats(a.embedding));
  if (a.genes.columns() == file.n_vars()) {
    std::vector<uint8_t> known;
    for (const int32_t token : a.genes.token) known.push_back(token >= 0 ? 1 : 0);
    writer_.add_var_booleans(key_ + "_in_model", known);
  }
  const AdapterBundle& bundle = annotator.bundle();
  writer_.add_uns(key_, {{"version", kVersion},
                         {"git", kGitHash},
                         {"command_line", session.command_line()},
                         {"time", utc_now()},
                         {"seconds", session.elapsed_s()},
                         {"device", session.device().name()},
                         {"base", bundle.base_kind},
                         {"base_fingerprint", annotator.model().fingerprint()},
                         {"adapter_fingerprint", annotator.adapter_fingerprint()},
                         {"slot", a.slot.slot},
                         {"genes", a.genes.columns()},
                         {"genes_matched", a.genes.matched},
                         {"cells_without_genes", a.without_genes},
                         {"categories", labels}});
  writer_.commit();
}

void write_annotation_csv(const H5ad& file, const Annotation& a,
                          const std::vector<std::string>& labels,
                          const std::function<void(std::string_view)>& write) {
  const Strings cells = file.obs().index();
  auto name = [&](int32_t label) {
    return label < 0 ? std::string() : csv_field(labels[static_cast<size_t>(label)]);
  };
  const bool baselines = !a.logistic.empty();
  write("cell,label,confidence,margin,entropy,status,second");
  write(baselines ? ",logistic_regression,knn\n" : "\n");
  std::string text;
  for (size_t i = 0; i < cells.size(); ++i) {
    text +=
        fmt::format("{},{},{},{},{},{},{}", csv_field(cells[i]), name(a.label[i]),
                    csv_number(a.confidence[i]), csv_number(a.margin[i]), csv_number(a.entropy[i]),
                    a.label[i] < 0 ? kNoGenes : kAssigned, name(a.second[i]));
    if (baselines) text += fmt::format(",{},{}", name(a.logistic[i]), name(a.neighbours[i]));
    text += '\n';
    if (text.size() < (1 << 20) && i + 1 < cells.size()) continue;
    write(text);
    text.clear();
  }
}

}  // namespace scgraft
