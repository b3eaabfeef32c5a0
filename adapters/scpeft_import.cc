// SPDX-License-Identifier: Apache-2.0
#include "adapters/scpeft_import.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>

#include "adapters/scpeft_arrays.h"
#include "io/text.h"
#include "model/scgpt/load.h"

namespace scgraft {
namespace {

constexpr double kSame = 1e-6;    // of the largest element
constexpr double kMerged = 1e-4;  // the same, for sums that were rounded on the way

std::vector<double> numbers(const Tensor& tensor) {
  const Tensor wide = tensor.converted(DType::f64);
  const double* begin = std::as_const(wide).as<double>();
  return {begin, begin + wide.numel()};
}

double largest(const std::vector<double>& values) {
  double most = 0;
  for (const double v : values) most = std::max(most, std::abs(v));
  return most;
}

// a - b; largest() of it is no number when one of them is none.
std::vector<double> minus(std::vector<double> a, const std::vector<double>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

bool within(const std::vector<double>& difference, double limit) {
  return std::all_of(difference.begin(), difference.end(),
                     [&](double v) { return std::abs(v) <= limit; });
}

std::string first_five(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 5; ++i) text += (i ? ", " : "") + escaped(names[i]);
  return names.size() > 5 ? cat(text, " and ", names.size() - 5, " more") : text;
}

// What a file calls what, by backbone.
struct Dialect {
  const char* backbone;
  ScpeftAdapter (*read)(const nlohmann::json& config, const Checkpoint& file, Backbone& base);
  std::string (*name)(const std::string& theirs);  // what the backbone calls a tensor
  // Beginnings of names that may have no place: what is no part of the network, heads of
  // pre-training.
  std::array<const char*, 3> without_use;
  const char* head;  // whose rows are the classes
};
constexpr Dialect kDialects[] = {
    {"scgpt",
     read_scpeft_adapter,
     canonical_scgpt_name,
     {"flag_encoder.", "decoder.", "mvc_decoder."},
     "cls_decoder.out_layer.weight"},
    {"scbert",
     read_scpeft_scbert_adapter,
     [](const std::string& theirs) { return theirs; },
     {"performer.calls_since_last_redraw", "to_out.weight", "to_out.bias"},
     "to_out.fc3.weight"},
};

class Import {
 public:
  Import(const Checkpoint& file, Backbone& base, ScpeftAdapter& read, ScpeftImport& out)
      : file_(file), base_(base), read_(read), out_(out) {
    for (const Parameter* p : base.encoder_parameters()) of_encoder_.insert(p);
  }

  void compare(const std::string& theirs, const std::string& ours);
  // Throws for everything that was found.
  void refuse() const;

 private:
  // n s B A of a layer's packed projection [3 dim, dim], where the file has LoRA in that layer.
  std::optional<std::vector<double>> product(const std::string& weight) const;

  const Checkpoint& file_;
  Backbone& base_;
  ScpeftAdapter& read_;
  ScpeftImport& out_;
  std::set<const Parameter*> of_encoder_;
  std::vector<std::string> without_place_, different_;
};

std::optional<std::vector<double>> Import::product(const std::string& weight) const {
  constexpr std::string_view kEnd = "in_proj_weight";
  if (!weight.ends_with(kEnd)) return {};
  const std::string lora = weight.substr(0, weight.size() - kEnd.size()) + "Wqkv.lora_";
  const auto a = read_.arrays.find(lora + "A"), b = read_.arrays.find(lora + "B");
  if (a == read_.arrays.end() || b == read_.arrays.end()) return {};
  const auto find = [](const AdapterOptions& o) -> const AdapterOptions* {
    for (const AdapterOptions& part : o.parts)
      if (part.type == "lora") return &part;
    return &o;
  };
  const AdapterOptions& options = *find(read_.adapter->options());
  const double scale = options.alpha / static_cast<double>(options.rank);
  std::vector<double> out;
  for (const size_t which : {0, 0, 1}) {  // q, k, v
    const bool none = !out.empty() && which == 0;
    const Tensor av = a->second.parts[which]->value.converted(DType::f64);
    const Tensor bv = b->second.parts[which]->value.converted(DType::f64);
    const auto as = av.as<double, 2>();
    const auto bs = bv.as<double, 2>();
    for (int64_t i = 0; i < bs.dim(0); ++i)
      for (int64_t j = 0; j < as.dim(1); ++j) {
        double sum = 0;
        for (int64_t r = 0; !none && r < as.dim(0); ++r) sum += bs(i, r) * as(r, j);
        out.push_back(scale * sum);
      }
  }
  return out;
}

void Import::compare(const std::string& theirs, const std::string& ours) {
  Parameter* p = base_.parameters().find(ours);
  if (p == nullptr) return without_place_.push_back(theirs);
  const Tensor& there = file_.tensor(theirs);
  if (there.numel() != p->value.numel())
    scpeft::fail(file_,
                 cat(escaped(theirs), " is ", there.shape(), ", the base has ", p->value.shape()));
  const std::vector<double> values = numbers(there), base = numbers(p->value);
  const std::vector<double> apart = minus(values, base);
  const double size = std::max(largest(base), 1e-30);
  if (within(apart, kSame * size)) return;
  const std::vector<std::string>& with_it = read_.trained_with_it;
  if (!of_encoder_.contains(p) ||
      std::find(with_it.begin(), with_it.end(), ours) != with_it.end()) {
    if (std::find(out_.trained.begin(), out_.trained.end(), p) != out_.trained.end()) return;
    const Tensor same = there.converted(p->value.dtype());
    if (p->value.is_shared()) p->value = Tensor(p->value.shape(), p->value.dtype());
    copy(same.view().reshape(p->value.shape()), p->value.view());
    return out_.trained.push_back(p);
  }
  if (const auto term = product(ours))
    for (const int times : {1, 2}) {
      std::vector<double> left = apart;
      for (size_t i = 0; i < left.size(); ++i) left[i] -= times * (*term)[i];
      if (!within(left, kMerged * size)) continue;
      const bool told = std::any_of(out_.merged.begin(), out_.merged.end(),
                                    [&](const auto& merged) { return merged.weight == ours; });
      if (!told) out_.merged.push_back({ours, times});
      return;
    }
  different_.push_back(theirs);
}

void Import::refuse() const {
  if (!without_place_.empty())
    scpeft::fail(file_, cat(without_place_.size(), " tensors have no place in this ", base_.kind(),
                            " backbone: ", first_five(without_place_)));
  if (different_.empty()) return;
  ModelError error(cat(file_.file(), ": ", different_.size(),
                       " weights are neither those of the base model nor ",
                       "those with the LoRA product merged in: ", first_five(different_)),
                   "E-ADAPTER-BASE");
  error.set_where(file_.file());
  error.set_hint(
      "name the model that it was trained from; a model that was fine-tuned as a whole is no "
      "adapter, and loads by itself");
  throw error;
}

}  // namespace

ScpeftImport import_scpeft(const nlohmann::json& config, const Checkpoint& file, Backbone& base) {
  const Dialect* dialect = nullptr;
  for (const Dialect& one : kDialects)
    if (one.backbone == base.kind()) dialect = &one;
  if (dialect == nullptr)
    scpeft::fail(
        file, cat("adapters of scPEFT are read on scGPT and scBERT, this base is ", base.kind()));
  ScpeftAdapter read = dialect->read(config, file, base);
  if (!read.adapter) scpeft::fail(file, "holds no adapter of scPEFT");
  ScpeftImport out;
  Import import(file, base, read, out);
  for (const TensorInfo& info : file.tensors()) {
    if (is_scpeft_tensor(info.name)) continue;
    const std::string ours = dialect->name(info.name);
    const bool left_out =
        base.parameters().find(ours) == nullptr &&
        std::any_of(dialect->without_use.begin(), dialect->without_use.end(),
                    [&](const char* beginning) { return ours.starts_with(beginning); });
    if (left_out)
      out.ignored.push_back(info.name);
    else
      import.compare(info.name, ours);
  }
  import.refuse();
  out.adapter = std::move(read.adapter);
  return out;
}

int64_t scpeft_classes(const Checkpoint& file) {
  for (const Dialect& dialect : kDialects)
    if (file.contains(dialect.head)) return file.info(dialect.head).dims.front();
  return 0;
}

}  // namespace scgraft
