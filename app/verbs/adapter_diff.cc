// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <set>

#include "adapters/store.h"
#include "adapters/store_files.h"
#include "app/add_verb.h"
#include "app/table.h"
#include "app/verbs/adapter_verbs.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

// What a person decided about an adapter, as one flat object.
json facts(const AdapterBundle& bundle) {
  json out = {{"base.kind", bundle.base_kind},
              {"base.fingerprint", bundle.base_fingerprint},
              {"labels", bundle.labels},
              {"genes", static_cast<int64_t>(bundle.genes.size())}};
  const json options = adapter_files::to_json(bundle.options);
  if (bundle.has_adapter)
    for (const auto& [key, value] : options.items()) out["adapter." + key] = value;
  if (bundle.preprocess.is_object())
    for (const auto& [key, value] : bundle.preprocess.items()) out["preprocess." + key] = value;
  return out;
}

std::string short_text(const json& value) {
  const std::string text = value.dump();
  return text.size() <= 40 ? text : text.substr(0, 37) + "...";
}

// |a - b| / |b|, and the cosine of the angle between them.
struct Apart {
  double relative = 0;
  double cosine = 1;
};
Apart apart(const Tensor& a, const Tensor& b) {
  const Tensor wide_a = a.converted(DType::f64), wide_b = b.converted(DType::f64);
  const double* x = wide_a.as<double>();
  const double* y = wide_b.as<double>();
  double xx = 0, yy = 0, xy = 0, difference = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    xx += x[i] * x[i];
    yy += y[i] * y[i];
    xy += x[i] * y[i];
    difference += (x[i] - y[i]) * (x[i] - y[i]);
  }
  Apart out;
  if (difference > 0)
    out.relative = yy > 0 ? std::sqrt(difference / yy) : std::numeric_limits<double>::infinity();
  if (xx > 0 && yy > 0) out.cosine = xy / std::sqrt(xx * yy);
  return out;
}

void diff(Session& session, const std::string& first, const std::string& second) {
  const auto timer = session.time("io");
  const LoadedBundle a = load_adapter(first), b = load_adapter(second);
  json settings = json::array(), tensors = json::array();
  std::string text;

  const json of_a = facts(a.bundle), of_b = facts(b.bundle);
  std::set<std::string> keys;
  for (const json* one : {&of_a, &of_b})
    for (const auto& entry : one->items()) keys.insert(entry.key());
  Table changed({"", first, second});
  for (const std::string& key : keys) {
    const json va = of_a.value(key, json()), vb = of_b.value(key, json());
    if (va == vb) continue;
    settings.push_back({{"name", key}, {"first", va}, {"second", vb}});
    changed.add({key, short_text(va), short_text(vb)});
  }
  if (!settings.empty()) text += changed.text();

  std::set<std::string> names;
  std::map<std::string, std::string> dims_a, dims_b;
  for (const auto& [from, to] : {std::pair(&a, &dims_a), std::pair(&b, &dims_b)})
    for (const TensorInfo& info : from->tensors.tensors()) {
      names.insert(info.name);
      (*to)[info.name] = info.dims_text();
    }
  Table moved({"tensor", "relative difference", "cosine"});
  int64_t same = 0;
  for (const std::string& name : names) {
    json entry = {{"name", name}, {"relative", nullptr}, {"cosine", nullptr}};
    std::string state;
    if (!dims_a.contains(name))
      state = "second only";
    else if (!dims_b.contains(name))
      state = "first only";
    else if (dims_a[name] != dims_b[name])
      state = cat(dims_a[name], " and ", dims_b[name]);
    if (!state.empty()) {
      entry["state"] = state;
      moved.add({name, state, ""});
    } else {
      const Apart d = apart(a.tensors.tensor(name), b.tensors.tensor(name));
      same += d.relative == 0 ? 1 : 0;
      entry["state"] = d.relative == 0 ? "same" : "different";
      entry["relative"] = d.relative;
      entry["cosine"] = d.cosine;
      if (d.relative > 0)
        moved.add({name, fmt::format("{:.3g}", d.relative), fmt::format("{:.6f}", d.cosine)});
    }
    tensors.push_back(entry);
  }
  const bool equal = settings.empty() && same == static_cast<int64_t>(names.size());
  if (same < static_cast<int64_t>(names.size())) text += moved.text();
  text +=
      fmt::format("{} of {} tensors are the same{}\n", same, names.size(),
                  settings.empty() ? "" : fmt::format(", {} settings are not", settings.size()));
  session.result() = {{"same", equal}, {"settings", settings}, {"tensors", tensors}};
  session.print(text);
}

}  // namespace

void add_adapter_diff(CLI::App& parent, Session& session) {
  auto folders = std::make_shared<std::pair<std::string, std::string>>();
  CLI::App& verb = add_verb(
      parent, session,
      {"diff",
       "Compare two adapters",
       {"scgraft adapter diff runs/a/adapter runs/b/adapter",
        "scgraft adapter diff runs/a/adapter runs/b/adapter --json | jq .result.settings"}},
      [&session, folders] { diff(session, folders->first, folders->second); });
  verb.add_option("FIRST", folders->first, "Adapter directory")->required();
  verb.add_option("SECOND", folders->second, "Another one")->required();
  add_common_flags(verb, session.flags(), {});
}

}  // namespace scgraft
