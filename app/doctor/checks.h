// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

namespace scgraft {

namespace gpu {
struct LibraryFacts;
}

enum class Health { ok, warn, fail };
const char* health_name(Health health);  // "OK", "WARN", "FAIL"

// One line of `scgraft doctor`.
struct Check {
  std::string what;   // "disk"
  Health health;      // warn: works, but slower or with less; fail: will not work
  std::string found;  // what there is
  std::string fix;    // what to do about it; empty when there is nothing to do
};

// What the program found on this machine: build, processor, memory, every CUDA device, disk, HDF5
// filters, locale and limits of the process. Never throws for what it finds.
//
//   device  as --device: a missing GPU is a failure only where one was asked for by name
//   folder  where outputs would be written
std::vector<Check> check_machine(const std::string& device, const std::string& folder);

// The part about CUDA devices, their driver, the architectures this program was compiled for and
// the libraries of docs/gpu-libraries.md.
std::vector<Check> check_gpus(const std::string& device);

// A library that is used where it is installed. Not to have it is fine; a path in the environment
// that leads nowhere is not.
Check check_library(const gpu::LibraryFacts& facts);

}  // namespace scgraft
