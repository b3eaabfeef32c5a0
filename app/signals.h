// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace scgraft {

// From now on SIGINT, SIGTERM and SIGUSR1 ask the program to stop instead of ending it; a second
// one of the same kind ends it as usual. For runs that can save their state, and for those with
// unfinished files to remove.
void catch_stop_signals();

// The first such signal, or 0. The exit code of a run that it stopped is 128 + the signal.
int stop_signal();

}  // namespace scgraft
