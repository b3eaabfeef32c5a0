// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "app/run_main.h"
#include "app/terminal.h"

int main(int argc, char** argv) {
  return scgraft::run_main({argv + 1, argv + argc}, std::cout, std::cerr,
                           scgraft::Terminal::of_process());
}
