// SPDX-License-Identifier: Apache-2.0
#include "app/verbs.h"

namespace scgraft {

std::span<const VerbEntry> verbs() {
  static constexpr VerbEntry kVerbs[] = {
      {add_inspect}, {add_convert}, {add_adapter}, {add_config}, {add_trace}, {add_version},
  };
  return kVerbs;
}

}  // namespace scgraft
