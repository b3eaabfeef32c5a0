// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace scgraft {

// What stands at the other end of the output streams.
struct Terminal {
  bool out = false;    // stdout is a terminal
  bool err = false;    // stderr is a terminal
  bool plain = false;  // NO_COLOR, TERM=dumb or CI: no colour and no carriage returns
  int width = 80;      // columns of stderr

  static Terminal of_process();
};

}  // namespace scgraft
