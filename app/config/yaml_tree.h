// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace scgraft {

// A YAML document as written: scalars stay text, because the schema gives them their types, and
// every node knows where it stands.
struct YamlNode {
  enum class Kind { null, scalar, list, map };

  Kind kind = Kind::null;
  std::string text;                                    // of a scalar
  std::vector<YamlNode> items;                         // of a list
  std::vector<std::pair<YamlNode, YamlNode>> members;  // of a map: scalar keys, in file order
  int line = 0;  // 1-based; 0 for values that come from the command line
  int column = 0;
};

// Parses one document. Limits are those of io/limits.h, checked before a node is built and after
// aliases are expanded. An empty document is null.
//   file  name for messages
// Throws ConfigError (exit 2): E-YAML for text that is no YAML, for tags, more than one document
// or a key that is no scalar; E-YAML-DUPLICATE for a key given twice; E-YAML-LIMIT. All messages
// begin "file:line:column".
YamlNode parse_yaml(std::string_view text, const std::string& file);

// parse_yaml() of a file. Also ConfigError E-CONFIG-FILE when it cannot be read.
YamlNode read_yaml(const std::string& path);

}  // namespace scgraft
