// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "app/run_main.h"
#include "app/terminal.h"

namespace {

// GNU OpenMP lets idle threads spin, and reads how long only from the environment and before main()
// starts. Where a core is shared with another program (a cluster node, a laptop in use) spinning
// stops all progress for a time slice at every region, so the program starts itself once more with
// sleeping threads. Who has set the policy keeps it.
void sleep_when_idle(char** argv) {
  for (const char* name : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
    if (std::getenv(name) != nullptr) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execv("/proc/self/exe", argv);
  // Still here: no /proc. It works without, only slower on a busy machine.
}

}  // namespace

int main(int argc, char** argv) {
  sleep_when_idle(argv);
  return scgraft::run_main({argv + 1, argv + argc}, std::cout, std::cerr,
                           scgraft::Terminal::of_process());
}
