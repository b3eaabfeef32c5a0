// SPDX-License-Identifier: Apache-2.0
#include "app/config/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "io/limits.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string file) : file_(std::move(file)) {}

  YamlNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    place(node(mark, YamlNode::Kind::null), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_tag(mark, tag);
    YamlNode scalar = node(mark, YamlNode::Kind::scalar);
    scalar.text = value;
    place(std::move(scalar), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto target = anchors_.find(anchor);
    if (target == anchors_.end()) fail(mark, "an alias inside its own anchor", "E-YAML");
    check_limits(mark, target->second.count, target->second.depth);
    count_ += target->second.count;
    place(target->second.node, 0);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::list);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::map);
  }
  void OnMapEnd() override { close(); }

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what, const char* code) const {
    fail(mark.line + 1, mark.column + 1, what, code);
  }

 private:
  struct Open {
    YamlNode node;
    YAML::anchor_t anchor;
    int64_t first;              // count_ before this node
    int64_t deepest;            // level of the deepest node inside
    std::vector<YamlNode> key;  // of a map: the key that waits for its value
  };
  struct Anchor {
    YamlNode node;
    int64_t count;
    int64_t depth;  // levels, 1 for a scalar
  };

  [[noreturn]] void fail(int line, int column, const std::string& what, const char* code) const {
    ConfigError error(cat(escaped(file_), ":", line, ":", column, ": ", what), code);
    error.set_where(file_);
    throw error;
  }

  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?" && tag != "!")
      fail(mark, cat("tags are not read, got ", escaped(tag)), "E-YAML");
  }

  void check_limits(const YAML::Mark& mark, int64_t more, int64_t depth) {
    if (count_ + more > limits::kYamlNodes)
      fail(mark, cat("more than ", limits::kYamlNodes, " values"), "E-YAML-LIMIT");
    const int64_t level = static_cast<int64_t>(open_.size()) + depth;
    if (level > limits::kYamlDepth)
      fail(mark, cat("nested deeper than ", limits::kYamlDepth), "E-YAML-LIMIT");
    if (!open_.empty()) open_.back().deepest = std::max(open_.back().deepest, level);
  }

  YamlNode node(const YAML::Mark& mark, YamlNode::Kind kind) {
    check_limits(mark, 1, 1);
    ++count_;
    YamlNode made;
    made.kind = kind;
    made.line = mark.line + 1;
    made.column = mark.column + 1;
    return made;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    refuse_tag(mark, tag);
    const int64_t first = count_;
    YamlNode made = node(mark, kind);
    const auto level = static_cast<int64_t>(open_.size()) + 1;
    open_.push_back({std::move(made), anchor, first, level, {}});
  }

  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    const auto level = static_cast<int64_t>(open_.size());
    if (!open_.empty()) open_.back().deepest = std::max(open_.back().deepest, done.deepest);
    if (done.anchor != 0)
      anchors_[done.anchor] = {done.node, count_ - done.first, done.deepest - level};
    add(std::move(done.node));
  }

  void place(YamlNode made, YAML::anchor_t anchor) {
    if (anchor != 0) anchors_[anchor] = {made, 1, 1};
    add(std::move(made));
  }

  void add(YamlNode made) {
    if (open_.empty()) {
      root_ = std::move(made);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::list) {
      parent.node.items.push_back(std::move(made));
    } else if (parent.key.empty()) {
      check_key(parent.node, made);
      parent.key.push_back(std::move(made));
    } else {
      parent.node.members.emplace_back(std::move(parent.key.back()), std::move(made));
      parent.key.clear();
    }
  }

  void check_key(const YamlNode& map, const YamlNode& key) const {
    if (key.kind != YamlNode::Kind::scalar)
      fail(key.line, key.column, "a key must be a word", "E-YAML");
    for (const auto& [other, value] : map.members)
      if (other.text == key.text)
        fail(key.line, key.column,
             cat("duplicate key \"", escaped(key.text), "\", first given on line ", other.line),
             "E-YAML-DUPLICATE");
  }

  std::string file_;
  YamlNode root_;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, Anchor> anchors_;
  int64_t count_ = 0;
};

}  // namespace

YamlNode parse_yaml(std::string_view text, const std::string& file) {
  require<ConfigError>(static_cast<int64_t>(text.size()) <= limits::kYamlBytes, escaped(file),
                       ":1:1: a configuration has at most ", limits::kYamlBytes,
                       " bytes, this file has ", text.size());
  TreeBuilder builder(file);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    YamlNode root = builder.take();
    TreeBuilder rest(file);
    if (parser.HandleNextDocument(rest))
      rest.fail(YAML::Mark::null_mark(), "more than one document", "E-YAML");
    return root;
  } catch (const YAML::Exception& problem) {
    builder.fail(problem.mark, cat("this is no YAML: ", escaped(problem.msg)), "E-YAML");
  }
}

YamlNode read_yaml(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) {
    // One byte more than allowed is enough to know.
    text.resize(static_cast<size_t>(limits::kYamlBytes) + 1);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) {
    ConfigError error(
        cat("the configuration ", escaped(path), " cannot be read: ", std::strerror(errno)),
        "E-CONFIG-FILE");
    error.set_hint("scgraft config init -o " + path);
    error.set_where(path);
    throw error;
  }
  return parse_yaml(text, path);
}

}  // namespace scgraft
