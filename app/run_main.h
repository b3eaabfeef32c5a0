// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "app/terminal.h"

namespace scgraft {

// The whole program: reads the arguments (without the program's name), runs the verb and returns
// the exit code (runtime/error.h). Nothing is thrown.
//
// `out` gets the answer and nothing else: text, or with --json exactly one JSON document, also when
// the run fails (app/report.h). `err` gets messages, warnings and progress.
int run_main(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err,
             const Terminal& terminal);

}  // namespace scgraft
