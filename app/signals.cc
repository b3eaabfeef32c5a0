// SPDX-License-Identifier: Apache-2.0
#include "app/signals.h"

#include <csignal>
#include <initializer_list>

namespace scgraft {
namespace {

volatile std::sig_atomic_t caught = 0;

void on_signal(int signal) {
  if (caught == 0) caught = signal;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESETHAND | SA_RESTART;  // the next one is not caught
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &action, nullptr);
}

int stop_signal() { return caught; }

}  // namespace scgraft
