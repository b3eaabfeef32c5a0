// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "runtime/gpu/libraries.h"
#include "tests/testing/op_test.h"

namespace scgraft::gpu {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Sets a variable of the environment until it goes.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

// First of the file: later tests load some.
TEST(GpuLibraries, NoneIsLoadedBeforeItIsAskedFor) {
  for (const char* file :
       {"libcublasLt.so.13", "libcublasLt.so.12", "libcudnn.so.9", "libnccl.so.2"})
    EXPECT_EQ(dlopen(file, RTLD_NOW | RTLD_NOLOAD), nullptr) << file;
}

TEST(GpuLibraries, AMissingOneIsSaidAndNotThrown) {
  const DynamicLibrary library(
      {"nothing", "SCGRAFT_NOTHING", {"libnothing.so.1", "libnothing.so.0"}});
  EXPECT_THAT(library.problem(), AllOf(HasSubstr("nothing was not found: "),
                                       HasSubstr("libnothing.so.1"), HasSubstr("libnothing.so.0")));
  EXPECT_EQ(library.file(), "");
}

TEST(GpuLibraries, AFunctionThatIsNotThereIsNamed) {
  const Environment named("SCGRAFT_CUBLASLT", "libm.so.6");
  const Loaded<cublaslt::Functions> library = load_cublaslt();
  EXPECT_FALSE(library);
  EXPECT_THAT(library.problem,
              AllOf(HasSubstr("libm.so.6"), HasSubstr("has no function cublasLtGetVersion")));
  EXPECT_EQ(library.functions.version, nullptr);
}

TEST(GpuLibraries, ThePathOfTheEnvironmentIsTheOnlyOneTried) {
  const Environment named("SCGRAFT_NCCL", "/none/libnccl.so");
  const Loaded<NcclFunctions> library = load_nccl();
  EXPECT_FALSE(library);
  EXPECT_THAT(library.problem, AllOf(HasSubstr("NCCL was not found at SCGRAFT_NCCL"),
                                     HasSubstr("/none/libnccl.so")));
}

TEST(GpuLibraries, AnEmptyPathIsNone) {
  const Environment named("SCGRAFT_NOTHING", "");
  DynamicLibrary library({"C", "SCGRAFT_NOTHING", {"libm.so.6"}});
  double (*cosine)(double) = nullptr;
  library.find("cos", cosine);
  EXPECT_EQ(library.problem(), "");
  ASSERT_NE(cosine, nullptr);
  EXPECT_EQ(cosine(0), 1);
  EXPECT_THAT(library.file(), HasSubstr("libm"));
}

TEST(GpuLibraries, FunctionsAreFoundAndCanBeCalled) {
  if (test_library().empty()) GTEST_SKIP() << "only with the emulated device";
  const Environment cublaslt("SCGRAFT_CUBLASLT", test_library());
  const Environment cudnn("SCGRAFT_CUDNN", test_library());
  const Environment nccl("SCGRAFT_NCCL", test_library());
  const Loaded<cublaslt::Functions> products = load_cublaslt();
  ASSERT_TRUE(products) << products.problem;
  EXPECT_EQ(products.functions.version(), 130100U);
  EXPECT_EQ(products.file, test_library());
  const Loaded<CudnnFunctions> networks = load_cudnn();
  ASSERT_TRUE(networks) << networks.problem;
  EXPECT_EQ(networks.functions.version(), 91900U);
  const Loaded<NcclFunctions> collectives = load_nccl();
  ASSERT_TRUE(collectives) << collectives.problem;
  int version = 0;
  EXPECT_EQ(collectives.functions.version(&version), 0);
  EXPECT_EQ(version, 22809);
}

// Whoever comes first loads; the others wait for it.
TEST(GpuLibraries, AreLoadedOnceByAnyThread) {
  if (test_library().empty()) GTEST_SKIP() << "only with the emulated device";
  const Environment named("SCGRAFT_CUBLASLT", test_library());
  std::vector<const Loaded<cublaslt::Functions>*> seen(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < seen.size(); ++i)
    threads.emplace_back([&seen, i] {
      seen[i] = &cublaslt_library();
      if (seen[i]->functions.version() != 130100) seen[i] = nullptr;
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto* library : seen) EXPECT_EQ(library, &cublaslt_library());
  ASSERT_TRUE(cublaslt_library());
  const Environment other("SCGRAFT_CUBLASLT", "/none");
  EXPECT_TRUE(cublaslt_library());
  EXPECT_EQ(library_facts()[0].version, "13.1.0");
}

}  // namespace
}  // namespace scgraft::gpu
