// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// What a file may claim before it is refused. One table for every reader: sizes are compared with
// it, and with the size of the file, before anything is allocated.
namespace scgraft::limits {

inline constexpr int64_t kSafetensorsHeaderBytes = 16'000'000;
inline constexpr int64_t kTensorRank = 8;
inline constexpr int64_t kTensorsPerFile = 1'000'000;
inline constexpr int64_t kPickleBytes = 64'000'000;
inline constexpr int64_t kPickleObjects = 4'000'000;
inline constexpr int64_t kPickleDepth = 64;
inline constexpr int64_t kStringBytes = 16 << 20;
inline constexpr int64_t kZipEntries = 1'000'000;
inline constexpr int64_t kJsonBytes = 256 << 20;
inline constexpr int64_t kJsonDepth = 64;
inline constexpr int64_t kYamlBytes = 1 << 20;
inline constexpr int64_t kYamlDepth = 32;
inline constexpr int64_t kYamlNodes = 100'000;
inline constexpr int64_t kHdf5Rank = 8;
inline constexpr int64_t kHdf5Depth = 64;
inline constexpr int64_t kCells = int64_t{1} << 32;
inline constexpr int64_t kGenes = 1 << 24;
inline constexpr int64_t kHostBudgetBytes = int64_t{2} << 30;

}  // namespace scgraft::limits
