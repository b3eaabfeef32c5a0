// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>

#include "runtime/gpu/types.h"

// What is used of cuBLASLt, declared here so that a build needs none of its headers. Values and
// layouts are compared with cublasLt.h by cublaslt_cuda.cc in builds that have it. Matrices of the
// library are column-major: a row-major [rows, cols] is its [cols, rows].
namespace scgraft::gpu::cublaslt {

enum class Status : int {
  success = 0,
  not_supported = 15,
};
enum class DataType : int { f32 = 0, f16 = 2, bf16 = 14 };
enum class ComputeType : int { f32 = 68 };  // sums in f32, and no factor is shortened
enum class Transpose : int { none = 0, transposed = 1 };
enum class Epilogue : int { none = 1, bias = 4 };

enum class ProductAttribute : int {
  transpose_a = 3,   // Transpose
  transpose_b = 4,   // Transpose
  epilogue = 7,      // Epilogue
  bias_pointer = 8,  // const void*: one element per row of the result, of its type
};
enum class PreferenceAttribute : int {
  most_workspace = 1,     // uint64_t, bytes
  reduction_schemes = 3,  // uint32_t, a mask; 0: k is not split
  alignment_a = 5,        // uint32_t, bytes
  alignment_b = 6,
  alignment_c = 7,
  alignment_d = 8,
};

struct Library;
struct ProductDesc;
struct Layout;
struct Preference;

struct Algorithm {
  uint64_t data[8];
};
struct Choice {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status status;
  float waves;
  int reserved[4];
};

struct Functions {
  size_t (*version)();  // 130100 for 13.1.0
  const char* (*status_text)(Status status);
  Status (*create)(Library** library);
  Status (*destroy)(Library* library);
  Status (*create_product)(ProductDesc** product, ComputeType compute, DataType scale);
  Status (*destroy_product)(ProductDesc* product);
  Status (*set_product)(ProductDesc* product, ProductAttribute attribute, const void* value,
                        size_t nbytes);
  Status (*create_layout)(Layout** layout, DataType type, uint64_t rows, uint64_t cols, int64_t ld);
  Status (*destroy_layout)(Layout* layout);
  Status (*create_preference)(Preference** preference);
  Status (*destroy_preference)(Preference* preference);
  Status (*set_preference)(Preference* preference, PreferenceAttribute attribute, const void* value,
                           size_t nbytes);
  // Writes at most `wanted` choices, best first.
  Status (*choose)(Library* library, ProductDesc* product, Layout* a, Layout* b, Layout* c,
                   Layout* d, Preference* preference, int wanted, Choice* choices, int* found);
  // d = alpha op(a) op(b) + beta c, and the epilogue. alpha and beta lie on the host.
  Status (*multiply)(Library* library, ProductDesc* product, const void* alpha, const void* a,
                     Layout* a_layout, const void* b, Layout* b_layout, const void* beta,
                     const void* c, Layout* c_layout, void* d, Layout* d_layout,
                     const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                     StreamHandle stream);
};

}  // namespace scgraft::gpu::cublaslt
