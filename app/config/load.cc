// SPDX-License-Identifier: Apache-2.0
#include "app/config/load.h"

#include <algorithm>
#include <charconv>

#include "adapters/adapter.h"
#include "app/config/assign.h"
#include "app/config/schema.h"
#include "app/config/yaml_tree.h"
#include "app/nearest.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

class Loader {
 public:
  Loader() {
    for (const ConfigKey& key : config_keys()) origins_[key.full_name()] = "default";
  }

  void read(const std::string& path) {
    const YamlNode root = read_yaml(path);
    if (root.kind == YamlNode::Kind::null) return;
    if (root.kind != YamlNode::Kind::map) {
      violate(place(path, root), "a configuration is made of keys and values");
      return;
    }
    read_version(path, root);
    for (const auto& [key, value] : root.members) read_top(path, key, value);
  }

  void set(const std::string& assignment) {
    const size_t equals = assignment.find('=');
    if (equals == std::string::npos) {
      violate("--set", cat("section.key=value is wanted, got \"", escaped(assignment), "\""));
      return;
    }
    give(assignment.substr(0, equals), assignment.substr(equals + 1), "--set");
  }

  void give(const std::string& name, const std::string& text, const std::string& origin) {
    const ConfigKey* key = find_key(name);
    if (key == nullptr) {
      violate(origin, unknown(name));
      return;
    }
    const YamlNode value = is_list(*key) ? list_of(text, origin) : scalar(text);
    take(*key, value, origin, origin);
  }

  RunConfig finish(const std::string& file, Origins* origins) {
    check_together();
    if (!violations_.empty()) {
      std::string text = violations_.front();
      for (size_t i = 1; i < violations_.size(); ++i) text += "\n  " + violations_[i];
      ConfigError error(text, "E-CONFIG");
      error.set_hint("scgraft config show, for every key and its default");
      error.set_where(file);
      throw error;
    }
    if (origins != nullptr) *origins = origins_;
    return config_;
  }

 private:
  static std::string place(const std::string& path, const YamlNode& node) {
    return cat(escaped(path), ":", node.line, ":", node.column);
  }

  static YamlNode scalar(std::string text) {
    YamlNode node;
    node.kind = YamlNode::Kind::scalar;
    node.text = std::move(text);
    return node;
  }

  // "[a, b]" as YAML, or "a,b".
  static YamlNode list_of(const std::string& text, const std::string& origin) {
    if (text.starts_with("[")) return parse_yaml(text, origin);
    YamlNode list;
    list.kind = YamlNode::Kind::list;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      list.items.push_back(scalar(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return list;
  }

  void violate(const std::string& where, const std::string& what) {
    violations_.push_back(cat(where, ": ", what));
  }

  void read_version(const std::string& path, const YamlNode& root) {
    for (const auto& [key, value] : root.members) {
      if (key.text != "schema_version") continue;
      int64_t version = 0;
      const std::string& text = value.text;
      const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), version);
      if (failure == std::errc() && end == text.data() + text.size() && version > kConfigVersion) {
        ConfigError error(cat(place(path, value), ": schema_version ", version,
                              " is newer than this program's ", kConfigVersion),
                          "E-CONFIG-VERSION");
        error.set_hint("a newer scgraft");
        error.set_where(path);
        throw error;
      }
      if (version != kConfigVersion)
        violate(place(path, value),
                cat("schema_version must be ", kConfigVersion, ", got \"", escaped(text), "\""));
    }
  }

  void read_top(const std::string& path, const YamlNode& name, const YamlNode& value) {
    if (name.text == "schema_version") return;
    const std::vector<std::string> sections = config_sections();
    if (std::find(sections.begin(), sections.end(), name.text) != sections.end()) {
      if (value.kind == YamlNode::Kind::map) {
        for (const auto& [key, inner] : value.members) read_key(path, name.text, key, inner);
      } else if (value.kind != YamlNode::Kind::null) {
        violate(place(path, value), cat(name.text, " is a section of keys, got a value"));
      }
      return;
    }
    read_key(path, "", name, value);
  }

  void read_key(const std::string& path, const std::string& section, const YamlNode& name,
                const YamlNode& value) {
    const ConfigKey* key = find_key(section, name.text);
    if (key == nullptr) {
      violate(place(path, name), unknown(section.empty() ? name.text : section + "." + name.text));
      return;
    }
    std::string& origin = origins_[key->full_name()];
    if (origin != "default") {  // an alias and the name itself
      violate(place(path, name), cat(key->full_name(), " is given twice, first at ", origin));
      return;
    }
    take(*key, value, place(path, value), cat(path, ":", name.line));
  }

  void take(const ConfigKey& key, const YamlNode& value, const std::string& where,
            const std::string& origin) {
    if (const std::string problem = assign(key, value, config_); !problem.empty())
      violate(where, problem);
    else if (value.kind != YamlNode::Kind::null)
      origins_[key.full_name()] = origin;
  }

  // The message about a key that does not exist: its right section, or the nearest name.
  static std::string unknown(const std::string& full) {
    const size_t dot = full.find('.');
    const std::string section = dot == std::string::npos ? "" : full.substr(0, dot);
    const std::string name = dot == std::string::npos ? full : full.substr(dot + 1);
    const std::string here = section.empty() ? "the top level" : "section " + escaped(section);
    if (const ConfigKey* elsewhere = find_key(name))
      return cat("\"", escaped(name), "\" belongs in ",
                 elsewhere->section.empty() ? std::string("the top level")
                                            : cat("section ", elsewhere->section),
                 ", not in ", here);
    std::vector<std::string> here_names;
    std::vector<std::string> all_names;
    for (const ConfigKey& key : config_keys()) {
      if (key.section == section) here_names.emplace_back(key.name);
      all_names.emplace_back(key.name);
    }
    if (section.empty())
      for (const std::string& other : config_sections()) here_names.push_back(other);
    std::string text = cat(here, " has no key \"", escaped(name), "\"");
    std::string near = nearest(name, here_names);
    if (near.empty()) {
      const std::string elsewhere = nearest(name, all_names);
      if (const ConfigKey* key = find_key(elsewhere)) near = key->full_name();
    }
    if (!near.empty()) return cat(text, "; did you mean ", near, "?");
    return here_names.empty() ? cat("there is no ", here)
                              : cat(text, "; it has ", joined(here_names));
  }

  void check_together() {
    const RunConfig& c = config_;
    const auto at = [this](const char* key) { return origins_.at(key); };
    if (c.data.val_fraction + c.data.test_fraction >= 1)
      violate(at("data.test_fraction"),
              cat("data.val_fraction ", c.data.val_fraction, " and data.test_fraction ",
                  c.data.test_fraction, " leave no cells to train on"));
    if (c.adapter.last_layer >= 0 && c.adapter.last_layer < c.adapter.first_layer)
      violate(at("adapter.last_layer"), cat("adapter.last_layer ", c.adapter.last_layer,
                                            " is below first_layer ", c.adapter.first_layer));
    if (c.data.hvg != "none" && c.data.hvg_count == 0)
      violate(at("data.hvg"), cat("data.hvg ", c.data.hvg, " needs data.hvg_count"));
    if (c.data.hvg == "none" && c.data.hvg_count > 0)
      violate(at("data.hvg_count"), "data.hvg_count needs data.hvg: seurat_v3 or cell_ranger");
    if (c.adapter.type != "none" && !is_adapter_type(c.adapter.type))
      violate(at("adapter.type"),
              cat("adapter.type ", c.adapter.type, " joins none to an adapter; leave it out"));
    if (c.adapter.type == "none" && c.train.trainable == "adapter" && c.task == "annotate")
      violate(at("adapter.type"),
              "adapter.type none leaves nothing to train; set train.trainable to head or all");
  }

  RunConfig config_;
  Origins origins_;
  std::vector<std::string> violations_;
};

}  // namespace

RunConfig load_run_config(const std::optional<std::filesystem::path>& file,
                          const std::vector<std::string>& sets, const std::vector<FlagValue>& flags,
                          Origins* origins) {
  Loader loader;
  if (file) loader.read(file->string());
  for (const std::string& assignment : sets) loader.set(assignment);
  for (const FlagValue& flag : flags) loader.give(flag.key, flag.value, flag.flag);
  return loader.finish(file ? file->string() : std::string(), origins);
}

}  // namespace scgraft
