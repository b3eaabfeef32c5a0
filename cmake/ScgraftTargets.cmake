# SPDX-License-Identifier: Apache-2.0
# Targets of this project. One library per layer folder, one operation per stem.

set(SCGRAFT_WARNING_FLAGS -Wall -Wextra -Wshadow)
if(SCGRAFT_WARNINGS_AS_ERRORS)
  list(APPEND SCGRAFT_WARNING_FLAGS -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_FLAGS MATCHES "-fsanitize=address")
  # With its checks compiled in, members of std::regex and std::optional seem uninitialised to g++.
  list(APPEND SCGRAFT_WARNING_FLAGS -Wno-maybe-uninitialized)
endif()

# Hot loops (`*_simd.cc`) are compiled once per level, the rest for the oldest one.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(SCGRAFT_BASELINE_FLAGS -march=x86-64-v3)
  set(SCGRAFT_SIMD_LEVELS v3 v4)
  set(SCGRAFT_SIMD_FLAGS_v3 -march=x86-64-v3)
  set(SCGRAFT_SIMD_FLAGS_v4 -march=x86-64-v4 -mprefer-vector-width=512)
else()
  set(SCGRAFT_BASELINE_FLAGS)
  set(SCGRAFT_SIMD_LEVELS v3)
  set(SCGRAFT_SIMD_FLAGS_v3)
endif()

function(scgraft_compile_settings target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${SCGRAFT_WARNING_FLAGS};${SCGRAFT_BASELINE_FLAGS}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra>")
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
endfunction()

# scgraft_add_library(layer LINK ...): static library scgraft_<layer> of every .cc and .h in the
# layer's folder and its subfolders.
function(scgraft_add_library layer)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${layer}/*.cc)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${layer}/*.h)
  scgraft_drop_other_back_ends(sources)
  scgraft_drop_other_back_ends(headers)
  add_library(scgraft_${layer} STATIC ${sources})
  target_sources(scgraft_${layer} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR}
                                         FILES ${headers})
  scgraft_compile_settings(scgraft_${layer})
  target_link_libraries(scgraft_${layer} PUBLIC ${ARG_LINK})
endfunction()

# scgraft_add_op(stem [CUDA]): adds kernels/<stem>.{h,cc}, tests/kernels/<stem>_test.cc and
# benchmarks/kernels/<stem>_bench.cc, and kernels/<stem>_simd.cc once per CPU level when it exists.
# CUDA: the operation has kernels, kernels/<stem>.cu and any kernels/<stem>_*.cu that is not an
# operation of its own.
# Stops when one of the files is missing.
function(scgraft_add_op stem)
  cmake_parse_arguments(ARG "CUDA" "" "" ${ARGN})
  set(files kernels/${stem}.h kernels/${stem}.cc tests/kernels/${stem}_test.cc
            benchmarks/kernels/${stem}_bench.cc)
  if(ARG_CUDA)
    list(APPEND files kernels/${stem}.cu)
  endif()
  foreach(file IN LISTS files)
    if(NOT EXISTS ${PROJECT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "operation ${stem}: ${file} is missing. An operation is one stem in "
                          "kernels/, tests/kernels/ and benchmarks/kernels/ (CONTRIBUTING.md)")
    endif()
  endforeach()
  target_sources(scgraft_kernels PRIVATE ${PROJECT_SOURCE_DIR}/kernels/${stem}.cc)
  if(EXISTS ${PROJECT_SOURCE_DIR}/kernels/${stem}_simd.cc)
    foreach(level IN LISTS SCGRAFT_SIMD_LEVELS)
      set(object scgraft_${stem}_simd_${level})
      add_library(${object} OBJECT ${PROJECT_SOURCE_DIR}/kernels/${stem}_simd.cc)
      scgraft_compile_settings(${object})
      target_compile_options(${object} PRIVATE ${SCGRAFT_SIMD_FLAGS_${level}} -ffp-contract=fast)
      target_compile_definitions(${object} PRIVATE SCGRAFT_SIMD_LEVEL=${level})
      target_link_libraries(${object} PRIVATE scgraft_runtime)
      target_sources(scgraft_kernels PRIVATE $<TARGET_OBJECTS:${object}>)
    endforeach()
  endif()
  set_property(GLOBAL APPEND PROPERTY SCGRAFT_OPS ${stem})
  if(ARG_CUDA AND NOT SCGRAFT_CUDA STREQUAL "OFF")
    file(GLOB kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/${stem}.cu
                                        ${PROJECT_SOURCE_DIR}/kernels/${stem}_*.cu)
    foreach(kernel IN LISTS kernels)  # attention_export*.cu are not of attention
      get_filename_component(owner ${kernel} NAME_WE)
      while(NOT owner STREQUAL stem AND NOT EXISTS ${PROJECT_SOURCE_DIR}/kernels/${owner}.h)
        string(REGEX REPLACE "_[^_]*$" "" owner ${owner})
      endwhile()
      if(NOT owner STREQUAL stem)
        list(REMOVE_ITEM kernels ${kernel})
      endif()
    endforeach()
    scgraft_cuda_sources(scgraft_kernels ${kernels})
    set_property(GLOBAL APPEND PROPERTY SCGRAFT_CUDA_OPS ${stem})
  endif()
endfunction()

# scgraft_add_test(name SOURCE LINK...): one GoogleTest program, one ctest entry.
function(scgraft_add_test name source)
  add_executable(${name} ${source})
  scgraft_compile_settings(${name})
  target_link_libraries(${name} PRIVATE scgraft_testing ${ARGN} GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600
    ENVIRONMENT "SCGRAFT_TEST_DATA=${PROJECT_SOURCE_DIR}/../shared;OMP_WAIT_POLICY=passive")
endfunction()

# scgraft_add_benchmark(name source LINK...): one Google Benchmark program.
function(scgraft_add_benchmark name source)
  add_executable(${name} ${source})
  scgraft_compile_settings(${name})
  target_link_libraries(${name} PRIVATE ${ARGN} benchmark::benchmark_main)
endfunction()

# scgraft_add_layer_tests(layer LINK...): a test program <layer>_<stem> for every
# tests/<layer>/<stem>.cc whose stem ends in _test. Stems that begin with gpu_ are of builds with
# CUDA, those with gpu_emulat of the emulated device only; theirs may be .cu.
function(scgraft_add_layer_tests layer)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${layer}/*_test.cc
                                              ${PROJECT_SOURCE_DIR}/tests/${layer}/*_test.cu)
  if(SCGRAFT_CUDA STREQUAL "OFF")
    list(FILTER sources EXCLUDE REGEX "/gpu_[^/]*$")
  elseif(SCGRAFT_CUDA STREQUAL "ON")
    list(FILTER sources EXCLUDE REGEX "/gpu_emulat[^/]*$")
  endif()
  foreach(source IN LISTS sources)
    get_filename_component(stem ${source} NAME_WE)
    scgraft_add_test(${layer}_${stem} ${source} ${ARGN})
    if(source MATCHES "[.]cu$" AND SCGRAFT_CUDA STREQUAL "EMULATED")
      set_source_files_properties(${source} PROPERTIES LANGUAGE CXX)
    endif()
  endforeach()
endfunction()

function(scgraft_summary)
  get_property(ops GLOBAL PROPERTY SCGRAFT_OPS)
  list(LENGTH ops count)
  message(STATUS "scgraft ${PROJECT_VERSION}")
  message(STATUS "  build type   ${CMAKE_BUILD_TYPE}")
  message(STATUS "  compiler     ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
  get_property(cuda_ops GLOBAL PROPERTY SCGRAFT_CUDA_OPS)
  list(LENGTH cuda_ops cuda_count)
  if(SCGRAFT_CUDA STREQUAL "ON")
    message(STATUS "  cuda         ON, ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
  else()
    message(STATUS "  cuda         ${SCGRAFT_CUDA}")
  endif()
  message(STATUS "  cpu levels   ${SCGRAFT_SIMD_LEVELS}")
  message(STATUS "  operations   ${count}, ${cuda_count} with CUDA kernels")
  message(STATUS "  tests        ${SCGRAFT_BUILD_TESTS}")
  message(STATUS "  benchmarks   ${SCGRAFT_BUILD_BENCHMARKS}")
endfunction()
