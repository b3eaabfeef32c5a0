// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/architectures.h"

#include <charconv>
#include <vector>

namespace scgraft::gpu {
namespace {

struct Architecture {
  int number = 0;
  bool exact = false;  // 90a
  bool machine_code = true;
  bool translated = true;
};

std::vector<Architecture> parsed(std::string_view list) {
  std::vector<Architecture> all;
  while (!list.empty()) {
    const size_t end = std::min(list.find(','), list.size());
    const std::string_view word = list.substr(0, end);
    list.remove_prefix(std::min(end + 1, list.size()));
    Architecture one;
    const char* last = std::from_chars(word.data(), word.data() + word.size(), one.number).ptr;
    const std::string_view rest = word.substr(static_cast<size_t>(last - word.data()));
    one.exact = rest.starts_with("a");
    one.machine_code = !rest.ends_with("-virtual");
    one.translated = !rest.ends_with("-real");
    if (one.number > 0) all.push_back(one);
  }
  return all;
}

}  // namespace

bool runs_on(std::string_view list, int capability) {
  for (const Architecture& one : parsed(list)) {
    if (one.number == capability) return true;
    if (one.exact || one.number > capability) continue;
    if (one.translated || (one.machine_code && one.number / 10 == capability / 10)) return true;
  }
  return false;
}

std::string readable_architectures(std::string_view list) {
  std::string text;
  for (const Architecture& one : parsed(list)) {
    if (!text.empty()) text += ' ';
    text += std::to_string(one.number) + (one.exact ? "a" : "");
  }
  return text;
}

}  // namespace scgraft::gpu
