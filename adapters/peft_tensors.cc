// SPDX-License-Identifier: Apache-2.0
#include "adapters/peft_tensors.h"

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "adapters/store_files.h"
#include "io/file_error.h"
#include "io/text.h"

namespace scgraft {
namespace {

using namespace adapter_files;

constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight", kU = ".hra_u",
                           kR = ".oft_R.weight";
constexpr std::array<std::string_view, 3> kParts = {".q_proj", ".k_proj", ".v_proj"};

// A projection of the backbone.
struct Place {
  std::string site;    // "layers.0.attn.q"
  std::string path;    // of its module here
  std::string target;  // "q"
  int layer = 0;
  int64_t in = 0, out = 0;
};

// The tensors of one module in the file.
struct Module {
  std::optional<Tensor> a, b;
  std::optional<Tensor> one;  // of HRA or OFT
};

// What one place gets.
struct Term {
  Tensor a, b, one;
  double scale = 1;
};

std::vector<Place> places_of(Backbone& backbone) {
  static const std::map<std::string, std::string> targets = {
      {"attn.q", "q"},     {"attn.k", "k"},      {"attn.v", "v"},
      {"attn.out", "out"}, {"ffn.in", "ffn_in"}, {"ffn.out", "ffn_out"}};
  std::vector<Place> places;
  for (const std::string& site : backbone.linear_sites()) {
    const size_t number = site.find('.') + 1, dot = site.find('.', number);
    const auto target = targets.find(site.substr(dot + 1));
    if (target == targets.end()) continue;
    const Linear& linear = backbone.linear_site(site);
    places.push_back({.site = site,
                      .path = backbone.module_path(site),
                      .target = target->second,
                      .layer = std::stoi(site.substr(number, dot - number)),
                      .in = linear.in(),
                      .out = linear.out()});
  }
  return places;
}

// PEFT's rule for a list of targets.
bool is_target(const std::vector<std::string>& targets, const std::string& module) {
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
    return module == target || module.ends_with("." + target);
  });
}

// Rows [begin, end) of a matrix.
Tensor rows(const Tensor& matrix, int64_t begin, int64_t end) {
  Tensor out({end - begin, matrix.dim(1)}, matrix.dtype());
  const auto from = std::as_const(matrix).as<float, 2>();
  const auto to = out.as<float, 2>();
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < matrix.dim(1); ++j) to(i - begin, j) = from(i, j);
  return out;
}

// The matrix times a factor, with zeros around it up to a larger shape.
Tensor padded(const Tensor& matrix, const Shape& shape, double factor) {
  Tensor out(shape, DType::f32);
  const auto to = out.as<float, 2>();
  for (int64_t i = 0; i < shape[0]; ++i)
    for (int64_t j = 0; j < shape[1]; ++j) to(i, j) = 0;
  if (matrix.empty()) return out;
  const auto from = matrix.as<float, 2>();
  for (int64_t i = 0; i < matrix.dim(0); ++i)
    for (int64_t j = 0; j < matrix.dim(1); ++j)
      to(i, j) = factor == 1 ? from(i, j) : static_cast<float>(factor * from(i, j));
  return out;
}

// Reflections that undo each other.
Tensor no_reflections(int64_t in, int64_t rank) {
  Tensor out = padded({}, {in, rank}, 1);
  for (int64_t j = 0; j < rank; ++j) out.as<float, 2>()(0, j) = 1;
  return out;
}

class Placing {
 public:
  Placing(const LoadedBundle& loaded, Backbone& backbone)
      : loaded_(loaded), backbone_(backbone), places_(places_of(backbone)) {
    if (loaded.config.kind == "hra") single_ = kU;
    if (loaded.config.kind == "oft") single_ = kR;
    for (size_t i = 0; i < places_.size(); ++i) {
      modules_[places_[i].path].push_back(i);
      const PackedPlace packed = packed_place(places_[i].path);
      if (packed.part >= 0) modules_[packed.module].push_back(i);
    }
  }

  PeftTensors place();

 private:
  [[noreturn]] void fail(const std::string& message, const std::string& hint,
                         const char* code) const {
    throw_file_error(FileKind::model, loaded_.folder, message, code, hint);
  }
  void fault(const std::string& key, const std::string& what) {
    out_.faults.push_back(cat(escaped(key), " ", what));
  }
  std::string key_of(const std::string& module, std::string_view tensor) const {
    return cat(kWrapped, module, tensor);
  }

  bool is_real(const TensorInfo& info);
  void read_file();
  void find_outermost();
  void place_module(const std::string& module, const Module& tensors);
  // The tensor as f32 if it has the shape, else empty and a fault.
  Tensor fitting(const std::string& key, const Tensor& tensor, const Shape& shape);
  // Of the tensor of HRA or OFT beside a projection.
  Shape shape_of_single(int64_t in, int64_t rank) const;
  void require_targets();
  void place_trained();
  void fill();
  template <class T>
  T of_module(const std::map<std::string, T>& patterns, const std::string& module,
              T otherwise) const;

  const LoadedBundle& loaded_;
  Backbone& backbone_;
  std::string_view single_;  // what the one tensor of a module ends with; empty: LoRA's pairs
  std::vector<Place> places_;
  std::map<std::string, std::vector<size_t>> modules_;  // of the backbone, packed ones too
  std::map<std::string, Module> file_;                  // by module path there
  std::string outermost_;                               // what paths in the file lack, with its dot
  std::map<size_t, Term> terms_;                        // by place
  PeftTensors out_;
};

// Whether it holds numbers that convert to f32; else a fault.
bool Placing::is_real(const TensorInfo& info) {
  if (info.dtype == DType::f32 || info.dtype == DType::f64 || info.dtype == DType::bf16 ||
      info.dtype == DType::f16)
    return true;
  fault(info.name, cat("is of type ", escaped(info.dtype_name)));
  return false;
}

void Placing::read_file() {
  for (const TensorInfo& info : loaded_.tensors.tensors()) {
    for (const std::string_view end : {kA, kB, kU, kR}) {
      if (!info.name.starts_with(kWrapped) || !info.name.ends_with(end)) continue;
      Module& module =
          file_[info.name.substr(kWrapped.size(), info.name.size() - kWrapped.size() - end.size())];
      const bool real = is_real(info);
      const bool matrix = info.dims.size() == 2;
      if (!matrix) fault(info.name, cat("is ", info.dims_text(), ", no matrix"));
      if (!real || !matrix) continue;
      if (single_.empty() ? end != kA && end != kB : end != single_)
        fault(info.name, "has no place");
      else
        (end == kA   ? module.a
         : end == kB ? module.b
                     : module.one) = loaded_.tensors.tensor(info.name);
    }
  }
}

void Placing::find_outermost() {
  const auto placed = [&](const std::string& outermost) {
    return std::count_if(file_.begin(), file_.end(), [&](const auto& entry) {
      return modules_.contains(outermost + entry.first);
    });
  };
  if (places_.empty()) return;
  const std::string& path = places_.front().path;
  const std::string first = path.substr(0, path.find('.') + 1);
  if (placed(first) > placed("")) outermost_ = first;
}

Tensor Placing::fitting(const std::string& key, const Tensor& tensor, const Shape& shape) {
  if (tensor.shape() == shape) return tensor.converted(DType::f32);
  fault(key, cat("is ", tensor.shape(), ", the backbone needs ", shape));
  return {};
}

template <class T>
T Placing::of_module(const std::map<std::string, T>& patterns, const std::string& module,
                     T otherwise) const {
  for (const auto& [ending, value] : patterns) {
    if (ending.find_first_of("\\^$*+?()[]{}|") != std::string::npos)
      fail(cat("has a pattern of ranks or alphas for \"", escaped(ending),
               "\"; this version reads names of modules"),
           "name the modules one by one", "E-ADAPTER");
    if (is_target({ending}, module)) return value;
  }
  return otherwise;
}

Shape Placing::shape_of_single(int64_t in, int64_t rank) const {
  const PeftConfig& config = loaded_.config;
  if (single_ == kU) return {in, rank};
  const int64_t blocks = config.blocks > 0 ? config.blocks : in / config.block_size;
  const int64_t size = config.blocks > 0 ? in / config.blocks : config.block_size;
  return {blocks, size * (size - 1) / 2};
}

void Placing::place_module(const std::string& module, const Module& tensors) {
  const auto known = modules_.find(outermost_ + module);
  if (known == modules_.end()) {
    for (const auto& [tensor, name] :
         {std::pair(&tensors.a, kA), std::pair(&tensors.b, kB), std::pair(&tensors.one, single_)})
      if (*tensor) fault(key_of(module, name), "has no place");
    return;
  }
  const std::vector<size_t>& there = known->second;
  const int64_t in = places_[there.front()].in;
  int64_t out = 0;
  for (const size_t place : there) out += places_[place].out;
  const int64_t rank = of_module(loaded_.config.ranks, module, loaded_.config.rank);
  const double alpha = of_module(loaded_.config.alphas, module, loaded_.config.alpha);
  for (const size_t place : there)
    if (terms_.contains(place))
      return fault(key_of(module, single_.empty() ? kA : single_), "is there twice");
  if (!single_.empty()) {
    if (!tensors.one) return;
    const Tensor one = fitting(key_of(module, single_), *tensors.one, shape_of_single(in, rank));
    for (const size_t place : there)
      if (!one.empty()) terms_[place].one = one.share();
    return;
  }
  for (const auto& [tensor, name] : {std::pair(&tensors.a, kA), std::pair(&tensors.b, kB)})
    if (!*tensor && !loaded_.tensors.contains(key_of(module, name)))
      fault(key_of(module, name), "is missing");
  if (!tensors.a || !tensors.b) return;
  const Tensor a = fitting(key_of(module, kA), *tensors.a, {rank, in});
  const Tensor b = fitting(key_of(module, kB), *tensors.b, {out, rank});
  if (a.empty() || b.empty()) return;
  int64_t row = 0;
  for (const size_t place : there) {
    Term& term = terms_[place];
    term.a = a.share();
    term.b = rows(b, row, row + places_[place].out);
    term.scale = loaded_.config.scale(rank, alpha);
    row += places_[place].out;
  }
}

void Placing::require_targets() {
  if (!loaded_.config.plain_targets) return;
  const std::string_view first_tensor = single_.empty() ? kA : single_;
  for (const auto& [path, there] : modules_) {
    if (!path.starts_with(outermost_)) continue;
    const std::string module = path.substr(outermost_.size());
    if (!is_target(loaded_.config.target_modules, module) || file_.contains(module)) continue;
    fault(key_of(module, first_tensor), "is missing");
  }
}

void Placing::place_trained() {
  std::set<const Parameter*> trained;
  const auto is_of_adapter = [](const std::string& name) {
    return name.ends_with(kA) || name.ends_with(kB) || name.ends_with(kU) || name.ends_with(kR);
  };
  for (const TensorInfo& info : loaded_.tensors.tensors()) {
    const bool wrapped = info.name.starts_with(kWrapped);
    if (wrapped && is_of_adapter(info.name)) continue;
    const std::string name = wrapped ? info.name.substr(kWrapped.size()) : std::string();
    const Parameter* parameter = backbone_.parameters().find(name);
    if (parameter == nullptr) parameter = backbone_.parameters().find(outermost_ + name);
    if (!wrapped || parameter == nullptr) {
      fault(info.name, "has no place");
      continue;
    }
    trained.insert(parameter);
    const auto want = parameter->value.shape().dims();
    if (!std::equal(info.dims.begin(), info.dims.end(), want.begin(), want.end()))
      fault(info.name,
            cat("is ", info.dims_text(), ", the backbone needs ", parameter->value.shape()));
    else if (is_real(info))
      out_.trained[parameter->name] = info.name;
  }
  // PEFT adds "classifier" and "score" by itself, so a module may not be there; one that is must
  // have been saved, or it would be whatever the caller had.
  for (const Parameter* p : backbone_.parameters().all())
    for (const std::string& module : loaded_.config.modules_to_save)
      if (!trained.contains(p) &&
          cat(".", p->name).find(cat(".", module, ".")) != std::string::npos) {
        fault(cat(kWrapped, p->name), "is missing");
        break;
      }
}

void Placing::fill() {
  AdapterOptions& options = out_.options;
  options.first_layer = backbone_.layer_count();
  double scale = 0;
  for (const auto& [place, term] : terms_) {
    options.first_layer = std::min(options.first_layer, places_[place].layer);
    options.last_layer = std::max(options.last_layer, places_[place].layer);
    if (single_ != kR)
      options.rank = std::max(options.rank, single_ == kU ? term.one.dim(1) : term.a.dim(0));
    if (scale == 0) scale = term.scale;
  }
  options.targets.clear();
  for (size_t i = 0; i < places_.size(); ++i)
    if (terms_.contains(i) && std::find(options.targets.begin(), options.targets.end(),
                                        places_[i].target) == options.targets.end())
      options.targets.push_back(places_[i].target);
  options.alpha = scale * static_cast<double>(options.rank);
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    const bool asked = place.layer >= options.first_layer && place.layer <= options.last_layer &&
                       std::find(options.targets.begin(), options.targets.end(), place.target) !=
                           options.targets.end();
    if (!asked) continue;
    const auto at = terms_.find(i);
    if (!single_.empty()) {
      Tensor& one = out_.adapter[key_of(place.path, single_)];
      if (at != terms_.end())
        one = at->second.one.share();
      else if (single_ == kU)
        one = no_reflections(place.in, options.rank);
      else  // no rotation
        one = padded({}, shape_of_single(place.in, 0), 1);
      continue;
    }
    const Term none;
    const Term& term = at == terms_.end() ? none : at->second;
    const double factor = term.scale == scale || scale == 0 ? 1 : term.scale / scale;
    out_.adapter[key_of(place.path, kA)] = padded(term.a, {options.rank, place.in}, 1);
    out_.adapter[key_of(place.path, kB)] = padded(term.b, {place.out, options.rank}, factor);
  }
}

PeftTensors Placing::place() {
  out_.options = loaded_.bundle.options;
  out_.options.rank = 1;
  read_file();
  find_outermost();
  for (const auto& [module, tensors] : file_) place_module(module, tensors);
  if (loaded_.bundle.has_adapter) {
    const bool any = std::any_of(file_.begin(), file_.end(), [&](const auto& entry) {
      return modules_.contains(outermost_ + entry.first);
    });
    if (!any)
      fail(cat("has no tensor for any place of this ", backbone_.kind(), " backbone"),
           "load the backbone it was made for", "E-ADAPTER-TENSOR");
    require_targets();
  }
  place_trained();
  if (out_.faults.empty() && !terms_.empty()) fill();
  return std::move(out_);
}

}  // namespace

PackedPlace packed_place(const std::string& module_path) {
  for (size_t part = 0; part < kParts.size(); ++part)
    if (module_path.ends_with(kParts[part]))
      return {
          cat(module_path.substr(0, module_path.size() - kParts[part].size() + 1), kPackedModule),
          static_cast<int>(part)};
  return {.module = module_path, .part = -1};
}

PeftTensors place_peft_tensors(const LoadedBundle& loaded, Backbone& backbone) {
  return Placing(loaded, backbone).place();
}

}  // namespace scgraft
