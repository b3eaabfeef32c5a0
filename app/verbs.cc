// SPDX-License-Identifier: Apache-2.0
#include "app/verbs.h"

namespace scgraft {

std::span<const VerbEntry> verbs() {
  // A comment keeps each row on a line of its own, so that new verbs do not collide.
  static constexpr VerbEntry kVerbs[] = {
      {add_inspect},    //
      {add_simulate},   //
      {add_pretrain},   //
      {add_train},      //
      {add_annotate},   //
      {add_embed},      //
      {add_attribute},  //
      {add_eval},       //
      {add_convert},    //
      {add_adapter},    //
      {add_config},     //
      {add_trace},      //
      {add_doctor},     //
      {add_version},    //
  };
  return kVerbs;
}

}  // namespace scgraft
