// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

// Libraries that a program uses where they are installed and does without where they are not. They
// are loaded when something first asks for them, so a program starts as fast without them.
namespace scgraft::gpu {

// How a library is looked for.
struct LibrarySearch {
  std::string name;      // in messages: "cuBLASLt"
  std::string variable;  // of the environment: the path of a file to use in place of these
  std::vector<std::string> files;  // tried in this order, where the dynamic linker looks
};

// A loaded library; it stays until the program ends. Nothing here throws for what is not there:
// problem() then says what was looked for.
class DynamicLibrary {
 public:
  explicit DynamicLibrary(const LibrarySearch& search);

  // Looks a function up. When it is not there, `function` is null and problem() names it.
  template <class F>
  void find(const char* symbol, F*& function) {
    function = reinterpret_cast<F*>(address(symbol));
  }

  const std::string& file() const { return file_; }        // what was loaded
  const std::string& problem() const { return problem_; }  // empty: everything was found

 private:
  void* address(const char* symbol);

  std::string name_;
  void* handle_ = nullptr;
  std::string file_;
  std::string problem_;
};

// The functions of a library that are used.
template <class Functions>
struct Loaded {
  Functions functions = {};
  std::string file;
  std::string problem;  // empty: all of them were found

  explicit operator bool() const { return problem.empty(); }
};

}  // namespace scgraft::gpu
