// SPDX-License-Identifier: Apache-2.0
// What cublaslt.h and libraries.h declare, against the headers of the libraries. Nothing is linked.
#include <cublasLt.h>

#include <type_traits>

#include "runtime/gpu/libraries.h"
#if __has_include(<cudnn_version.h>) && __has_include(<cudnn_graph.h>)
#include <cudnn_graph.h>
#endif
#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

namespace scgraft::gpu {
namespace {

using namespace cublaslt;

// Equal values, and equal width: enumerations are passed by value.
template <auto ours, auto theirs>
constexpr bool kSame = static_cast<int>(ours) == static_cast<int>(theirs) &&
                       sizeof(ours) == sizeof(theirs);

static_assert(kSame<Status::success, CUBLAS_STATUS_SUCCESS>);
static_assert(kSame<Status::not_supported, CUBLAS_STATUS_NOT_SUPPORTED>);
static_assert(kSame<DataType::f32, CUDA_R_32F>);
static_assert(kSame<DataType::f16, CUDA_R_16F>);
static_assert(kSame<DataType::bf16, CUDA_R_16BF>);
static_assert(kSame<ComputeType::f32, CUBLAS_COMPUTE_32F>);
static_assert(kSame<Transpose::none, CUBLAS_OP_N>);
static_assert(kSame<Transpose::transposed, CUBLAS_OP_T>);
static_assert(kSame<Epilogue::none, CUBLASLT_EPILOGUE_DEFAULT>);
static_assert(kSame<Epilogue::bias, CUBLASLT_EPILOGUE_BIAS>);
static_assert(kSame<ProductAttribute::transpose_a, CUBLASLT_MATMUL_DESC_TRANSA>);
static_assert(kSame<ProductAttribute::transpose_b, CUBLASLT_MATMUL_DESC_TRANSB>);
static_assert(kSame<ProductAttribute::epilogue, CUBLASLT_MATMUL_DESC_EPILOGUE>);
static_assert(kSame<ProductAttribute::bias_pointer, CUBLASLT_MATMUL_DESC_BIAS_POINTER>);
static_assert(kSame<PreferenceAttribute::most_workspace, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES>);
static_assert(
    kSame<PreferenceAttribute::reduction_schemes, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK>);
static_assert(kSame<PreferenceAttribute::alignment_a, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES>);
static_assert(kSame<PreferenceAttribute::alignment_b, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES>);
static_assert(kSame<PreferenceAttribute::alignment_c, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES>);
static_assert(kSame<PreferenceAttribute::alignment_d, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES>);
static_assert(CUBLASLT_REDUCTION_SCHEME_NONE == 0);

static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(alignof(Algorithm) == alignof(cublasLtMatmulAlgo_t));
static_assert(sizeof(Choice) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(alignof(Choice) == alignof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(Choice, algorithm) == offsetof(cublasLtMatmulHeuristicResult_t, algo));
static_assert(offsetof(Choice, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(Choice, status) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(Choice, waves) == offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));
static_assert(sizeof(StreamHandle) == sizeof(cudaStream_t));

// A type of the library by the one that stands for it here: what is passed must have the size and
// be the same kind of thing, and every parameter must have its partner.
template <class Ours, class Theirs>
constexpr bool matches() {
  if constexpr (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) {
    using O = std::remove_pointer_t<Ours>;
    using T = std::remove_pointer_t<Theirs>;
    if constexpr (std::is_pointer_v<O> || std::is_pointer_v<T>)
      return std::is_pointer_v<O> && std::is_pointer_v<T> && matches<O, T>();
    else
      return std::is_const_v<O> == std::is_const_v<T> && std::is_void_v<O> == std::is_void_v<T>;
  } else if constexpr (std::is_enum_v<Ours>) {
    return std::is_enum_v<Theirs> && sizeof(Ours) == sizeof(Theirs);
  } else {
    return std::is_same_v<Ours, Theirs>;
  }
}
template <class Ours, class Theirs>
struct SameCall : std::false_type {};
template <class R, class... P, class S, class... Q>
struct SameCall<R (*)(P...), S (*)(Q...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(P) == sizeof...(Q))
      return matches<R, S>() && (matches<P, Q>() && ...);
    else
      return false;
  }();
};
template <auto ours, auto theirs>
constexpr bool kSameCall =
    SameCall<std::remove_cvref_t<decltype(Functions{}.*ours)>, decltype(theirs)>::value;

static_assert(kSameCall<&Functions::version, &cublasLtGetVersion>);
static_assert(kSameCall<&Functions::status_text, &cublasLtGetStatusString>);
static_assert(kSameCall<&Functions::create, &cublasLtCreate>);
static_assert(kSameCall<&Functions::destroy, &cublasLtDestroy>);
static_assert(kSameCall<&Functions::create_product, &cublasLtMatmulDescCreate>);
static_assert(kSameCall<&Functions::destroy_product, &cublasLtMatmulDescDestroy>);
static_assert(kSameCall<&Functions::set_product, &cublasLtMatmulDescSetAttribute>);
static_assert(kSameCall<&Functions::create_layout, &cublasLtMatrixLayoutCreate>);
static_assert(kSameCall<&Functions::destroy_layout, &cublasLtMatrixLayoutDestroy>);
static_assert(kSameCall<&Functions::create_preference, &cublasLtMatmulPreferenceCreate>);
static_assert(kSameCall<&Functions::destroy_preference, &cublasLtMatmulPreferenceDestroy>);
static_assert(kSameCall<&Functions::set_preference, &cublasLtMatmulPreferenceSetAttribute>);
static_assert(kSameCall<&Functions::choose, &cublasLtMatmulAlgoGetHeuristic>);
static_assert(kSameCall<&Functions::multiply, &cublasLtMatmul>);

#ifdef CUDNN_MAJOR
static_assert(std::is_same_v<decltype(CudnnFunctions::version), decltype(&cudnnGetVersion)>);
#endif
#ifdef NCCL_MAJOR
static_assert(sizeof(ncclResult_t) == sizeof(int) && ncclSuccess == 0);
static_assert(std::is_invocable_v<decltype(&ncclGetVersion), int*>);
#endif

}  // namespace
}  // namespace scgraft::gpu
