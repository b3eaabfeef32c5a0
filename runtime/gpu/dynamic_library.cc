// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/dynamic_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>

#include "runtime/cat.h"

namespace scgraft::gpu {
namespace {

std::string file_of(void* handle) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : "";
}

std::string why() {
  const char* text = dlerror();
  return text == nullptr ? "no reason given" : text;
}

}  // namespace

DynamicLibrary::DynamicLibrary(const LibrarySearch& search) : name_(search.name) {
  const char* given = std::getenv(search.variable.c_str());
  const bool named = given != nullptr && *given != '\0';
  const std::vector<std::string> files = named ? std::vector<std::string>{given} : search.files;
  std::string tried;
  for (const std::string& file : files) {
    handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      file_ = file_of(handle_);
      return;
    }
    tried += cat(tried.empty() ? "" : "; ", why());
  }
  problem_ = cat(name_, " was not found", named ? cat(" at ", search.variable) : "", ": ", tried);
}

void* DynamicLibrary::address(const char* symbol) {
  if (handle_ == nullptr) return nullptr;
  void* found = dlsym(handle_, symbol);
  if (found == nullptr && problem_.empty())
    problem_ = cat(name_, " in ", file_, " has no function ", symbol);
  return found;
}

}  // namespace scgraft::gpu
