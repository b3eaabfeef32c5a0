// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only header that asks the preprocessor how this build was made.

#ifdef __CUDACC__
#define SCGRAFT_HD __host__ __device__
#else
#define SCGRAFT_HD
#endif

namespace scgraft {

// Whether this build has device code, and whether it runs on the CPU by the emulator of
// runtime/gpu (SCGRAFT_CUDA=EMULATED) in place of a CUDA device.
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
