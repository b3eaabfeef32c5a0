// SPDX-License-Identifier: Apache-2.0
#include "app/logging.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/ostream_sink.h>

#include <algorithm>

namespace scgraft {

std::string printable(const std::string& text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string safe;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // U+0080 to U+009F are control characters as well.
    const bool c1 = c == 0xc2 && i + 1 < text.size() &&
                    static_cast<unsigned char>(text[i + 1]) >= 0x80 &&
                    static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if ((c < 0x20 && c != '\n') || c == 0x7f || c1) {
      const unsigned char shown = c1 ? static_cast<unsigned char>(text[++i]) : c;
      safe += {'\\', 'x', kHex[shown >> 4], kHex[shown & 15]};
    } else {
      safe += text[i];
    }
  }
  return safe;
}

struct Log::Sink {
  explicit Sink(std::ostream& err)
      : logger("scgraft", std::make_shared<spdlog::sinks::ostream_sink_mt>(err, true)) {
    logger.set_pattern("%v");
    logger.set_level(spdlog::level::trace);
  }
  spdlog::logger logger;
};

Log::Log(std::ostream& err) : sink_(std::make_unique<Sink>(err)) {}
Log::~Log() = default;

void Log::write(LogLevel level, const std::string& code, const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (level == LogLevel::warning) {
    if (warnings_.size() < kKept) warnings_.push_back({code, text});
    const auto same = std::count_if(warnings_.begin(), warnings_.end(),
                                    [&](const Warning& w) { return w.code == code; });
    if (same > kShown) return;
    const char* word = colour_ ? "\x1b[33mwarning\x1b[0m" : "warning";
    sink_->logger.warn("{}{}{}: {}", word, code.empty() ? "" : " ", code, printable(text));
  } else if (level >= level_) {
    sink_->logger.info("{}", printable(text));
  }
}

LogScope::LogScope(Log& log) {
  set_log_callback([&log](LogLevel level, const std::string& code, const std::string& text) {
    log.write(level, code, text);
  });
}
LogScope::~LogScope() { set_log_callback(nullptr); }

}  // namespace scgraft
