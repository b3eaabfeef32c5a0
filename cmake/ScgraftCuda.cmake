# SPDX-License-Identifier: Apache-2.0
# How CUDA sources are built. SCGRAFT_CUDA is
#   OFF       not at all
#   ON        by nvcc, for the architectures of CMAKE_CUDA_ARCHITECTURES
#   EMULATED  by the C++ compiler; device "cuda" then is an emulated one in this process, for tests
set(SCGRAFT_CUDA OFF CACHE STRING "How CUDA sources are built: OFF, ON or EMULATED")
set_property(CACHE SCGRAFT_CUDA PROPERTY STRINGS OFF ON EMULATED)
if(NOT SCGRAFT_CUDA MATCHES "^(OFF|ON|EMULATED)$")
  message(FATAL_ERROR "SCGRAFT_CUDA=${SCGRAFT_CUDA}: must be OFF, ON or EMULATED")
endif()

if(SCGRAFT_CUDA STREQUAL "ON")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # Machine code of one card family each; code that drivers translate for cards of other numbers.
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80 86-real 89-real 90a-real 120
        CACHE STRING "GPU architectures to build for")
  endif()
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(CMAKE_CUDA_COMPILER nvcc PATHS /usr/local/cuda/bin)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  # CMake 3.25 does not know that nvcc 13 speaks C++20 and would silently choose C++17.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
endif()

# scgraft_drop_other_back_ends(list): removes from a list of files those of runtime/gpu that this
# build has no use for. Files of one back end end in _cuda or _emulated.
function(scgraft_drop_other_back_ends list)
  set(files ${${list}})
  if(SCGRAFT_CUDA STREQUAL "OFF")
    list(FILTER files EXCLUDE REGEX "/gpu/[^/]*[.]cc$")
  elseif(SCGRAFT_CUDA STREQUAL "EMULATED")
    list(FILTER files EXCLUDE REGEX "/gpu/[^/]*_cuda[.]cc$")
  else()
    list(FILTER files EXCLUDE REGEX "/gpu/([^/]*_emulated|emulator[^/]*|fiber)[.](cc|h)$")
  endif()
  if(NOT SCGRAFT_CUDA STREQUAL "ON")
    list(FILTER files EXCLUDE REGEX "/gpu/cuda_error[.]h$")
  endif()
  set(${list} ${files} PARENT_SCOPE)
endfunction()

# scgraft_cuda_back_end(target): what users of the runtime must know and link.
function(scgraft_cuda_back_end target)
  if(NOT SCGRAFT_CUDA STREQUAL "OFF")
    target_compile_definitions(${target} PUBLIC SCGRAFT_WITH_CUDA=1)
  endif()
  if(SCGRAFT_CUDA STREQUAL "EMULATED")
    target_compile_definitions(${target} PUBLIC SCGRAFT_CUDA_EMULATED=1)
    # The thread sanitizer must not see the emulator's own accesses, only those of kernels.
    if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=[a-z,]*thread")
      set_source_files_properties(
        ${PROJECT_SOURCE_DIR}/runtime/gpu/emulator.cc
        ${PROJECT_SOURCE_DIR}/runtime/gpu/emulator_primitives.cc
        ${PROJECT_SOURCE_DIR}/runtime/gpu/emulator_worker.cc
        ${PROJECT_SOURCE_DIR}/runtime/gpu/fiber.cc
        PROPERTIES COMPILE_OPTIONS -fno-sanitize=thread COMPILE_DEFINITIONS SCGRAFT_EMULATOR_TSAN)
    endif()
  elseif(SCGRAFT_CUDA STREQUAL "ON")
    target_link_libraries(${target} PUBLIC CUDA::cudart_static)
    list(JOIN CMAKE_CUDA_ARCHITECTURES "," architectures)
    set_source_files_properties(
      ${PROJECT_SOURCE_DIR}/runtime/gpu/driver_cuda.cc PROPERTIES
      COMPILE_DEFINITIONS "SCGRAFT_CUDA_ARCHITECTURES=\"${architectures}\"")
  endif()
endfunction()

# scgraft_cuda_sources(target FILE...): adds .cu files to a target of this directory.
function(scgraft_cuda_sources target)
  target_sources(${target} PRIVATE ${ARGN})
  if(SCGRAFT_CUDA STREQUAL "EMULATED")
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  endif()
endfunction()
