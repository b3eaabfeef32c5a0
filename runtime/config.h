// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only header that asks the preprocessor how this build was made.

#ifdef __CUDACC__
#define SCGRAFT_HD __host__ __device__
#else
#define SCGRAFT_HD
#endif

namespace scgraft {

// How device code of this build is executed: not at all (a CPU build), by a GPU, or by an emulated
// device in this process, for tests. SCGRAFT_CUDA is the CMake option.
#ifdef SCGRAFT_WITH_CUDA
inline constexpr bool kBuiltWithCuda = true;
#else
inline constexpr bool kBuiltWithCuda = false;
#endif
#ifdef SCGRAFT_CUDA_EMULATED
inline constexpr bool kCudaEmulated = true;
#else
inline constexpr bool kCudaEmulated = false;
#endif

}  // namespace scgraft
