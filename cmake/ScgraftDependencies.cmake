# SPDX-License-Identifier: Apache-2.0
# Every dependency is a Debian package that tools/setup installs. Nothing is downloaded here.

macro(scgraft_find package debian)
  find_package(${package} ${ARGN} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was not found. Install it: apt-get install ${debian}   "
                        "(or everything at once: tools/setup)")
  endif()
endmacro()

function(scgraft_find_library target header library debian)
  find_path(${target}_INCLUDE ${header})
  find_library(${target}_LIBRARY ${library})
  mark_as_advanced(${target}_INCLUDE ${target}_LIBRARY)
  if(NOT ${target}_INCLUDE OR NOT ${target}_LIBRARY)
    message(FATAL_ERROR "${library} was not found. Install it: apt-get install ${debian}   "
                        "(or everything at once: tools/setup)")
  endif()
  add_library(scgraft::${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(scgraft::${target} INTERFACE ${${target}_INCLUDE})
  target_link_libraries(scgraft::${target} INTERFACE ${${target}_LIBRARY})
endfunction()

scgraft_find(OpenMP "libgomp1 (g++) or libomp-dev (clang)")
scgraft_find(Threads libc6-dev)
scgraft_find(fmt libfmt-dev)
scgraft_find(spdlog libspdlog-dev)
scgraft_find(nlohmann_json nlohmann-json3-dev)
scgraft_find(yaml-cpp libyaml-cpp-dev)
scgraft_find(CLI11 libcli11-dev)
scgraft_find(Eigen3 libeigen3-dev)
scgraft_find(OpenSSL libssl-dev)
scgraft_find(ZLIB zlib1g-dev)
# The C API only; the package's own CMake module wants a compiler for C. The archive before the
# shared library: the latter loads an HTTP client and thirty libraries more for a driver (ROS3) that
# nothing here calls.
find_path(HDF5_C_INCLUDE hdf5.h PATH_SUFFIXES hdf5/serial)
find_library(HDF5_C_LIBRARY NAMES libhdf5_serial.a libhdf5.a hdf5_serial hdf5)
mark_as_advanced(HDF5_C_INCLUDE HDF5_C_LIBRARY)
if(NOT HDF5_C_INCLUDE OR NOT HDF5_C_LIBRARY)
  message(FATAL_ERROR "HDF5 was not found. Install it: apt-get install libhdf5-dev   "
                      "(or everything at once: tools/setup)")
endif()
add_library(scgraft::hdf5 INTERFACE IMPORTED GLOBAL)
target_include_directories(scgraft::hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE})
target_link_libraries(scgraft::hdf5 INTERFACE ${HDF5_C_LIBRARY})
if(HDF5_C_LIBRARY MATCHES "\\.a$")
  # What it compresses with: Debian's libhdf5-dev depends on both.
  find_library(HDF5_SZ_LIBRARY sz REQUIRED)
  mark_as_advanced(HDF5_SZ_LIBRARY)
  target_link_libraries(scgraft::hdf5 INTERFACE ${HDF5_SZ_LIBRARY} ZLIB::ZLIB ${CMAKE_DL_LIBS})
endif()
scgraft_find_library(zip zip.h zip libzip-dev)
scgraft_find_library(dnnl oneapi/dnnl/dnnl.h dnnl libdnnl-dev)
if(SCGRAFT_BUILD_TESTS)
  scgraft_find(GTest "libgtest-dev libgmock-dev")
endif()
if(SCGRAFT_BUILD_BENCHMARKS)
  scgraft_find(benchmark libbenchmark-dev)
endif()
