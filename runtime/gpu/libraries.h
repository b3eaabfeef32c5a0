// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "runtime/gpu/cublaslt.h"
#include "runtime/gpu/dynamic_library.h"

// The libraries of NVIDIA that are used where they are installed (docs/gpu-libraries.md). Each is
// loaded when it is first asked for, once per process, by whichever thread comes first. Builds
// without CUDA have none of this.
namespace scgraft::gpu {

struct CudnnFunctions {
  size_t (*version)();  // 91900 for 9.19.0
};
struct NcclFunctions {
  int (*version)(int* version);  // 22809 for 2.28.9; returns 0 when it worked
};

const Loaded<cublaslt::Functions>& cublaslt_library();
const Loaded<CudnnFunctions>& cudnn_library();
const Loaded<NcclFunctions>& nccl_library();

// The same afresh, for tests: with what the environment says now.
Loaded<cublaslt::Functions> load_cublaslt();
Loaded<CudnnFunctions> load_cudnn();
Loaded<NcclFunctions> load_nccl();

// One line of `scgraft doctor`.
struct LibraryFacts {
  std::string name = {};
  std::string version = {};  // "13.1.0"; empty when the library cannot be used
  std::string file = {};
  std::string problem = {};  // why not
  bool named = false;        // the environment says which file to use
};
std::vector<LibraryFacts> library_facts();

}  // namespace scgraft::gpu
