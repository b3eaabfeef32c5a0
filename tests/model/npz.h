// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/mapped_file.h"
#include "io/zip_directory.h"

namespace scgraft {

// Arrays of a NumPy .npz file, for tests that compare with recorded results.
class Npz {
 public:
  explicit Npz(const std::string& path)
      : file_(MappedFile::open(path, FileKind::data)),
        zip_(ZipDirectory::parse(file_->bytes(), FileKind::data, path)) {}

  struct Array {
    std::vector<int64_t> shape;
    std::vector<double> values;  // row-major

    // Row of a matrix as another type.
    template <class T>
    std::vector<T> row(int64_t index) const {
      const auto width = static_cast<size_t>(shape.at(1));
      const auto begin = values.begin() + index * static_cast<int64_t>(width);
      return std::vector<T>(begin, begin + static_cast<int64_t>(width));
    }
    template <class T>
    std::vector<T> all() const {
      return std::vector<T>(values.begin(), values.end());
    }
  };

  Array operator[](const std::string& name) const {
    const ZipEntry* entry = zip_.find(name + ".npy");
    if (entry == nullptr) throw std::runtime_error("npz: no array " + name);
    const ZipContent content = zip_.read(*entry, int64_t{64} << 20);
    const auto* bytes = reinterpret_cast<const char*>(content.bytes.data());
    uint16_t header_size = 0;  // format 1.0
    std::memcpy(&header_size, bytes + 8, 2);
    const std::string header(bytes + 10, header_size);
    const bool by_columns = header.find("'fortran_order': False") == std::string::npos;
    Array array;
    size_t count = 1;
    const size_t open = header.find('(', header.find("'shape'"));
    for (size_t at = open + 1; header[at] != ')';) {
      size_t used = 0;
      array.shape.push_back(std::stoll(header.substr(at), &used));
      count *= static_cast<size_t>(array.shape.back());
      at += used;
      while (header[at] == ',' || header[at] == ' ') ++at;
    }
    const char* data = bytes + 10 + header_size;
    if (header.find("<f4") != std::string::npos)
      array.values = read<float>(data, count);
    else if (header.find("<f8") != std::string::npos)
      array.values = read<double>(data, count);
    else if (header.find("<i2") != std::string::npos)
      array.values = read<int16_t>(data, count);
    else if (header.find("<i8") != std::string::npos)
      array.values = read<int64_t>(data, count);
    else
      throw std::runtime_error("npz: " + name + " has a type that is not read");
    if (by_columns) array.values = transposed(array, name);
    return array;
  }

 private:
  // Values of a matrix that are stored column by column, row by row.
  static std::vector<double> transposed(const Array& array, const std::string& name) {
    if (array.shape.size() != 2) throw std::runtime_error("npz: " + name + " is not row-major");
    const auto rows = static_cast<size_t>(array.shape[0]);
    const auto columns = static_cast<size_t>(array.shape[1]);
    std::vector<double> values(rows * columns);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = array.values[i % columns * rows + i / columns];
    return values;
  }
  template <class T>
  static std::vector<double> read(const char* data, size_t count) {
    std::vector<T> values(count);
    std::memcpy(values.data(), data, count * sizeof(T));
    return std::vector<double>(values.begin(), values.end());
  }

  std::shared_ptr<const MappedFile> file_;
  ZipDirectory zip_;
};

}  // namespace scgraft
