// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/libraries.h"

#include <cstdlib>

#include "runtime/cat.h"

namespace scgraft::gpu {
namespace {

const LibrarySearch kCublasLt = {
    "cuBLASLt", "SCGRAFT_CUBLASLT", {"libcublasLt.so.13", "libcublasLt.so.12"}};
const LibrarySearch kCudnn = {"cuDNN", "SCGRAFT_CUDNN", {"libcudnn.so.9"}};
const LibrarySearch kNccl = {"NCCL", "SCGRAFT_NCCL", {"libnccl.so.2"}};

// All three count 1 for a patch, 100 for a minor and 10000 for a major version.
std::string version_text(int64_t version) {
  return cat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

template <class Functions, class Version>
LibraryFacts facts_of(const LibrarySearch& search, const Loaded<Functions>& library,
                      Version&& version) {
  const char* given = std::getenv(search.variable.c_str());
  LibraryFacts facts{search.name, "", library.file, library.problem,
                     given != nullptr && *given != '\0'};
  if (library) facts.version = version_text(version(library.functions));
  return facts;
}

template <class Functions>
void end(const DynamicLibrary& library, Loaded<Functions>& loaded) {
  loaded.file = library.file();
  loaded.problem = library.problem();
}

}  // namespace

Loaded<cublaslt::Functions> load_cublaslt() {
  DynamicLibrary library(kCublasLt);
  Loaded<cublaslt::Functions> loaded;
  cublaslt::Functions& f = loaded.functions;
  library.find("cublasLtGetVersion", f.version);
  library.find("cublasLtGetStatusString", f.status_text);
  library.find("cublasLtCreate", f.create);
  library.find("cublasLtDestroy", f.destroy);
  library.find("cublasLtMatmulDescCreate", f.create_product);
  library.find("cublasLtMatmulDescDestroy", f.destroy_product);
  library.find("cublasLtMatmulDescSetAttribute", f.set_product);
  library.find("cublasLtMatrixLayoutCreate", f.create_layout);
  library.find("cublasLtMatrixLayoutDestroy", f.destroy_layout);
  library.find("cublasLtMatmulPreferenceCreate", f.create_preference);
  library.find("cublasLtMatmulPreferenceDestroy", f.destroy_preference);
  library.find("cublasLtMatmulPreferenceSetAttribute", f.set_preference);
  library.find("cublasLtMatmulAlgoGetHeuristic", f.choose);
  library.find("cublasLtMatmul", f.multiply);
  end(library, loaded);
  return loaded;
}

Loaded<CudnnFunctions> load_cudnn() {
  DynamicLibrary library(kCudnn);
  Loaded<CudnnFunctions> loaded;
  library.find("cudnnGetVersion", loaded.functions.version);
  end(library, loaded);
  return loaded;
}

Loaded<NcclFunctions> load_nccl() {
  DynamicLibrary library(kNccl);
  Loaded<NcclFunctions> loaded;
  library.find("ncclGetVersion", loaded.functions.version);
  end(library, loaded);
  return loaded;
}

const Loaded<cublaslt::Functions>& cublaslt_library() {
  static const Loaded<cublaslt::Functions> library = load_cublaslt();
  return library;
}
const Loaded<CudnnFunctions>& cudnn_library() {
  static const Loaded<CudnnFunctions> library = load_cudnn();
  return library;
}
const Loaded<NcclFunctions>& nccl_library() {
  static const Loaded<NcclFunctions> library = load_nccl();
  return library;
}

std::vector<LibraryFacts> library_facts() {
  return {facts_of(kCublasLt, cublaslt_library(),
                   [](const auto& f) { return static_cast<int64_t>(f.version()); }),
          facts_of(kCudnn, cudnn_library(),
                   [](const auto& f) { return static_cast<int64_t>(f.version()); }),
          facts_of(kNccl, nccl_library(), [](const auto& f) {
            int version = 0;
            return f.version(&version) == 0 ? int64_t{version} : 0;
          })};
}

}  // namespace scgraft::gpu
