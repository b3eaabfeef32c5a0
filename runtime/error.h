// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/cat.h"

namespace scgraft {

// Process exit codes; the command line returns the one its error carries.
enum class ExitCode : int {
  ok = 0,
  bug = 1,         // unexpected failure
  usage = 2,       // bad flag or configuration, before any work
  data = 10,       // input data invalid
  model = 11,      // model or adapter invalid, corrupt, or made for another base
  storage = 12,    // no space, no permission, I/O error
  device = 13,     // no usable device
  numerical = 15,  // non-finite loss
  stopped = 75,    // stopped on purpose with state saved
};

// Base of every exception the library throws.
//
//   what()  what was wanted, what came, in the words of the person at the keyboard
//   code()  stable identifier, "E-..." (docs/errors.md)
//   hint()  one thing to try, may be empty
//   file(), path()  the file, and the object inside it, the error is about; may be empty
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, std::string code = "E-BUG",
                 ExitCode exit = ExitCode::bug)
      : std::runtime_error(message), code_(std::move(code)), exit_(exit) {}

  const std::string& code() const { return code_; }
  ExitCode exit_code() const { return exit_; }
  const std::string& hint() const { return hint_; }
  const std::string& file() const { return file_; }
  const std::string& path() const { return path_; }

  void set_code(std::string code) { code_ = std::move(code); }
  void set_hint(std::string hint) { hint_ = std::move(hint); }
  void set_where(std::string file, std::string path = {}) {
    file_ = std::move(file);
    path_ = std::move(path);
  }

 private:
  std::string code_;
  ExitCode exit_;
  std::string hint_;
  std::string file_;
  std::string path_;
};

// Our own mistakes: shapes and types that no user input should be able to produce.
class ShapeError : public Error {
 public:
  explicit ShapeError(const std::string& message) : Error(message, "E-SHAPE") {}
};
class TypeError : public Error {
 public:
  explicit TypeError(const std::string& message) : Error(message, "E-TYPE") {}
};

// A flag or a configuration file is wrong (exit 2).
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message, std::string code = "E-CONFIG")
      : Error(message, std::move(code), ExitCode::usage) {}
};

// The device asked for is not there (exit 13).
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& message, std::string code = "E-DEVICE")
      : Error(message, std::move(code), ExitCode::device) {}
};

// A file could not be used; which of the three kinds decides the exit code.
class FileError : public Error {
 public:
  using Error::Error;
};
class DataError : public FileError {  // exit 10
 public:
  explicit DataError(const std::string& message, std::string code = "E-DATA")
      : FileError(message, std::move(code), ExitCode::data) {}
};
class ModelError : public FileError {  // exit 11
 public:
  explicit ModelError(const std::string& message, std::string code = "E-MODEL")
      : FileError(message, std::move(code), ExitCode::model) {}
};
class StorageError : public FileError {  // exit 12
 public:
  explicit StorageError(const std::string& message, std::string code = "E-STORAGE")
      : FileError(message, std::move(code), ExitCode::storage) {}
};

// A loss or a gradient is not finite (exit 15).
class NumericalError : public Error {
 public:
  explicit NumericalError(const std::string& message, std::string code = "E-NONFINITE")
      : Error(message, std::move(code), ExitCode::numerical) {}
};

// Throws `E` with the concatenated parts when `condition` is false. The text is built only then.
//   require(x.rank() == 2, "linear: x must be [tokens, in], got ", x.shape());
//   require<DataError>(n > 0, "the file has no cells");
template <class E = ShapeError, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw E(cat(parts...));
}

}  // namespace scgraft
