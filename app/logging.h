// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <iosfwd>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/log.h"

namespace scgraft {

// Text that cannot change a terminal: control characters but the line feed become \xNN. Text that
// library code quotes from files is escaped already (io/text.h); this is the last line of defence.
std::string printable(const std::string& text);

struct Warning {
  std::string code;
  std::string message;
};

// Where messages of the library go: to stderr from a level on, and all warnings into a list for
// the report. Thread-safe. At most kShown warnings of one code are printed; the list has them all
// up to kKept.
class Log {
 public:
  explicit Log(std::ostream& err);
  ~Log();

  void set_level(LogLevel level) { level_ = level; }
  void set_colour(bool colour) { colour_ = colour; }
  void write(LogLevel level, const std::string& code, const std::string& text);
  const std::vector<Warning>& warnings() const { return warnings_; }

  static constexpr int kShown = 5;
  static constexpr size_t kKept = 1000;

 private:
  struct Sink;
  std::unique_ptr<Sink> sink_;
  LogLevel level_ = LogLevel::info;
  bool colour_ = false;
  std::mutex mutex_;
  std::vector<Warning> warnings_;
};

// The library's messages go to `log` while this object lives.
class LogScope {
 public:
  explicit LogScope(Log& log);
  ~LogScope();
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;
};

}  // namespace scgraft
