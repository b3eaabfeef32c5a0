// SPDX-License-Identifier: Apache-2.0
// A shared library in place of cuBLASLt, cuDNN and NCCL, for the emulated device, whose memory is
// that of the host. It multiplies with sums in f64 and looks at everything it is told. Names,
// values and layouts are those of NVIDIA's documentation, written down again: this file must not
// include what it is there to check.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "runtime/cat.h"
#include "runtime/dtype.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace scgraft {
namespace {

constexpr int kSuccess = 0, kInvalidValue = 7, kNotSupported = 15;
constexpr int kReal32 = 0, kReal16 = 2, kReal16B = 14;  // cudaDataType
constexpr uint64_t kAlignment = 256;                    // of a workspace
constexpr size_t kWorkspace = 3 * 4096;                 // what an algorithm asks for

struct Matmul {
  int compute = -1, scale = -1, transa = 0, transb = 0, epilogue = 1;
  const void* bias = nullptr;
};
struct Layout {
  int type = -1;
  uint64_t rows = 0, cols = 0;
  int64_t ld = 0;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t schemes = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};
};
// What an algorithm was chosen for; fits the 64 bytes that callers keep.
struct Chosen {
  uint64_t problem;
  uint32_t alignment[4];
  uint64_t magic;
};
struct ChosenRoom {
  uint64_t data[8];
};
struct Result {
  ChosenRoom algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Chosen) <= sizeof(ChosenRoom) && sizeof(Result) == 96);
constexpr uint64_t kMagic = 0x5c6af7c0b1a51700;

int live_handles = 0;
int64_t live_objects = 0, queries = 0, products = 0;
int refusal = 0;
std::string problem;

int wrong(const std::string& text, int status = kInvalidValue) {
  problem = text;
  return status;
}

int64_t bytes_of(int type) { return type == kReal32 ? 4 : 2; }

double element(const void* data, int type, int64_t at) {
  if (type == kReal32) return static_cast<double>(static_cast<const float*>(data)[at]);
  if (type == kReal16)
    return static_cast<double>(static_cast<float>(static_cast<const f16*>(data)[at]));
  return static_cast<double>(static_cast<float>(static_cast<const bf16*>(data)[at]));
}
void set_element(void* data, int type, int64_t at, double value) {
  const auto rounded = static_cast<float>(value);
  if (type == kReal32)
    static_cast<float*>(data)[at] = rounded;
  else if (type == kReal16)
    static_cast<f16*>(data)[at] = f16(rounded);
  else
    static_cast<bf16*>(data)[at] = bf16(rounded);
}

struct Sizes {
  int64_t m = 0, n = 0, k = 0;
};

// Whether the parts of a product fit each other and are what this library multiplies.
int check(const Matmul* p, const Layout* a, const Layout* b, const Layout* c, const Layout* d,
          Sizes& sizes) {
  if (p == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr)
    return wrong("a descriptor is null");
  if (p->compute != 68)
    return wrong(cat("compute type ", p->compute, " is not CUBLAS_COMPUTE_32F"));
  if (p->scale != kReal32) return wrong(cat("scale type ", p->scale, " is not CUDA_R_32F"));
  if (p->transa < 0 || p->transa > 1 || p->transb < 0 || p->transb > 1)
    return wrong("a transpose is neither N nor T");
  if (a->type != b->type) return wrong(cat("A has type ", a->type, ", B ", b->type));
  if (a->type != kReal32 && a->type != kReal16 && a->type != kReal16B)
    return wrong(cat("A has type ", a->type));
  if (c->type != d->type) return wrong(cat("C has type ", c->type, ", D ", d->type));
  if (d->type != a->type && d->type != kReal32)
    return wrong(cat("A has type ", a->type, ", D ", d->type), kNotSupported);
  const Layout* all[] = {a, b, c, d};
  const char* names = "ABCD";
  for (int i = 0; i < 4; ++i) {
    if (all[i]->rows == 0 || all[i]->cols == 0) return wrong(cat(names[i], " is empty"));
    if (all[i]->ld < static_cast<int64_t>(all[i]->rows))
      return wrong(cat("leading dimension ", all[i]->ld, " of ", names[i], " is below its ",
                       all[i]->rows, " rows"));
  }
  const uint64_t m = p->transa ? a->cols : a->rows, ka = p->transa ? a->rows : a->cols;
  const uint64_t kb = p->transb ? b->cols : b->rows, n = p->transb ? b->rows : b->cols;
  if (ka != kb) return wrong(cat("op(A) has ", ka, " columns, op(B) ", kb, " rows"));
  for (const Layout* l : {c, d})
    if (l->rows != m || l->cols != n)
      return wrong(
          cat("the result is [", m, ", ", n, "], its layout [", l->rows, ", ", l->cols, "]"));
  if (p->epilogue != 1 && p->epilogue != 4)
    return wrong(cat("epilogue ", p->epilogue), kNotSupported);
  if ((p->epilogue == 4) != (p->bias != nullptr))
    return wrong("a bias without its epilogue, or an epilogue without its bias");
  sizes = {static_cast<int64_t>(m), static_cast<int64_t>(n), static_cast<int64_t>(ka)};
  return kSuccess;
}

// A number of a problem; the pointer of the bias is no part of it.
uint64_t number_of(const Matmul& p, const Layout& a, const Layout& b, const Layout& c,
                   const Layout& d) {
  uint64_t hash = 1469598103934665603ULL;
  const auto mix = [&](uint64_t v) { hash = (hash ^ v) * 1099511628211ULL; };
  for (int v : {p.compute, p.scale, p.transa, p.transb, p.epilogue}) mix(static_cast<uint64_t>(v));
  for (const Layout* l : {&a, &b, &c, &d}) {
    mix(static_cast<uint64_t>(l->type));
    mix(l->rows);
    mix(l->cols);
    mix(static_cast<uint64_t>(l->ld));
  }
  return hash;
}

template <class T>
int store(T& to, const void* from, size_t nbytes, const char* what) {
  if (from == nullptr || nbytes != sizeof(T))
    return wrong(cat(what, " has ", nbytes, " bytes, not ", sizeof(T)));
  std::memcpy(&to, from, sizeof(T));
  return kSuccess;
}

}  // namespace
}  // namespace scgraft

using namespace scgraft;

EXPORTED size_t cublasLtGetVersion() { return 130100; }
EXPORTED size_t cudnnGetVersion() { return 91900; }
EXPORTED int ncclGetVersion(int* version) {
  *version = 22809;
  return 0;
}

EXPORTED const char* cublasLtGetStatusString(int status) {
  if (status == kSuccess) return "success";
  return problem.c_str();
}

EXPORTED int cublasLtCreate(int** handle) {
  if (refusal != 0) return wrong("it was told not to start", refusal);
  *handle = new int(++live_handles);
  return kSuccess;
}
EXPORTED int cublasLtDestroy(int* handle) {
  delete handle;
  --live_handles;
  return kSuccess;
}

EXPORTED int cublasLtMatmulDescCreate(Matmul** p, int compute, int scale) {
  *p = new Matmul{.compute = compute, .scale = scale};
  ++live_objects;
  return kSuccess;
}
EXPORTED int cublasLtMatmulDescDestroy(Matmul* p) {
  delete p;
  --live_objects;
  return kSuccess;
}
EXPORTED int cublasLtMatmulDescSetAttribute(Matmul* p, int attribute, const void* value,
                                            size_t nbytes) {
  switch (attribute) {
    case 3:
      return store(p->transa, value, nbytes, "TRANSA");
    case 4:
      return store(p->transb, value, nbytes, "TRANSB");
    case 7:
      return store(p->epilogue, value, nbytes, "EPILOGUE");
    case 8:
      return store(p->bias, value, nbytes, "BIAS_POINTER");
    default:
      return wrong(cat("attribute ", attribute, " of a product"));
  }
}

EXPORTED int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols,
                                        int64_t ld) {
  *layout = new Layout{type, rows, cols, ld};
  ++live_objects;
  return kSuccess;
}
EXPORTED int cublasLtMatrixLayoutDestroy(Layout* layout) {
  delete layout;
  --live_objects;
  return kSuccess;
}

EXPORTED int cublasLtMatmulPreferenceCreate(Preference** preference) {
  *preference = new Preference;
  ++live_objects;
  return kSuccess;
}
EXPORTED int cublasLtMatmulPreferenceDestroy(Preference* preference) {
  delete preference;
  --live_objects;
  return kSuccess;
}
EXPORTED int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute,
                                                  const void* value, size_t nbytes) {
  if (attribute == 1) return store(preference->workspace, value, nbytes, "MAX_WORKSPACE_BYTES");
  if (attribute == 3) return store(preference->schemes, value, nbytes, "REDUCTION_SCHEME_MASK");
  if (attribute >= 5 && attribute <= 8)
    return store(preference->alignment[attribute - 5], value, nbytes, "MIN_ALIGNMENT");
  return wrong(cat("attribute ", attribute, " of a preference"));
}

EXPORTED int cublasLtMatmulAlgoGetHeuristic(int* handle, Matmul* p, Layout* a, Layout* b, Layout* c,
                                            Layout* d, Preference* preference, int wanted,
                                            Result* results, int* found) {
  ++queries;
  *found = 0;
  if (handle == nullptr || preference == nullptr || wanted < 1)
    return wrong("no handle, no preference, or no room for an answer");
  Sizes sizes;
  if (const int status = check(p, a, b, c, d, sizes)) return status;
  if (preference->schemes != 0)
    return wrong(cat("reduction schemes ", preference->schemes, ": sums may be split over k"));
  if (refusal != 0) return wrong("it was told to refuse", refusal);
  if (preference->workspace < kWorkspace) return wrong("too little workspace", kNotSupported);
  Chosen chosen = {.problem = number_of(*p, *a, *b, *c, *d), .alignment = {}, .magic = kMagic};
  for (int i = 0; i < 4; ++i) {
    const uint32_t alignment = preference->alignment[i];
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
      return wrong(cat("an alignment of ", alignment));
    chosen.alignment[i] = alignment;
  }
  Result result = {};
  std::memcpy(&result.algorithm, &chosen, sizeof chosen);
  result.workspace = kWorkspace;
  result.status = kSuccess;
  results[0] = result;
  *found = 1;
  return kSuccess;
}

EXPORTED int cublasLtMatmul(int* handle, Matmul* p, const void* alpha, const void* a, Layout* la,
                            const void* b, Layout* lb, const void* beta, const void* c, Layout* lc,
                            void* d, Layout* ld, const ChosenRoom* algorithm, void* workspace,
                            size_t workspace_bytes, void*) {
  ++products;
  if (handle == nullptr) return wrong("no handle");
  Sizes s;
  if (const int status = check(p, la, lb, lc, ld, s)) return status;
  if (algorithm == nullptr) return wrong("no algorithm: the library would choose one itself");
  Chosen chosen;
  std::memcpy(&chosen, algorithm, sizeof chosen);
  if (chosen.magic != kMagic) return wrong("the algorithm is none of this library's");
  if (chosen.problem != number_of(*p, *la, *lb, *lc, *ld))
    return wrong("the algorithm was chosen for another problem");
  const void* pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (pointers[i] == nullptr ||
        reinterpret_cast<uintptr_t>(pointers[i]) % chosen.alignment[i] != 0)
      return wrong(cat("matrix ", i, " is null or not aligned to the ", chosen.alignment[i],
                       " bytes that were promised"));
  if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % kAlignment != 0)
    return wrong("the workspace is null or not aligned to 256 bytes");
  if (workspace_bytes < kWorkspace)
    return wrong(
        cat("the workspace has ", workspace_bytes, " bytes, the algorithm needs ", kWorkspace));
  float factor[2];
  std::memcpy(&factor[0], alpha, 4);
  std::memcpy(&factor[1], beta, 4);
  if (p->epilogue == 4 &&
      reinterpret_cast<uintptr_t>(p->bias) % static_cast<uintptr_t>(bytes_of(ld->type)) != 0)
    return wrong("the bias is not aligned to its type");
  // All of it is the caller's to give.
  std::memset(workspace, 0xa5, kWorkspace);
  std::memset(static_cast<char*>(workspace) + workspace_bytes - kWorkspace, 0xa5, kWorkspace);
  for (int64_t j = 0; j < s.n; ++j)
    for (int64_t i = 0; i < s.m; ++i) {
      double sum = 0;
      for (int64_t q = 0; q < s.k; ++q)
        sum += element(a, la->type, p->transa ? i * la->ld + q : q * la->ld + i) *
               element(b, lb->type, p->transb ? q * lb->ld + j : j * lb->ld + q);
      sum *= static_cast<double>(factor[0]);
      if (factor[1] != 0)
        sum += static_cast<double>(factor[1]) * element(c, lc->type, j * lc->ld + i);
      if (p->epilogue == 4) sum += element(p->bias, ld->type, i);
      set_element(d, ld->type, j * ld->ld + i, sum);
    }
  return kSuccess;
}

// For tests: what has happened so far, and what to answer from now on (0: the truth).
EXPORTED int64_t scgraft_test_queries() { return queries; }
EXPORTED int64_t scgraft_test_products() { return products; }
EXPORTED int64_t scgraft_test_live() { return live_handles + live_objects; }
EXPORTED void scgraft_test_refuse(int status) { refusal = status; }
