// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "runtime/error.h"

namespace scgraft {

// `call` throws an error with this code and exit code whose text contains `part`.
inline void expect_file_error(ExitCode exit, const std::string& code, const std::string& part,
                              const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected " << code << " that says \"" << part << '"';
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(error.exit_code(), exit) << error.what();
    EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
    for (const char c : std::string(error.what()) + error.hint() + error.path())
      EXPECT_GE(static_cast<unsigned char>(c), 0x20) << "control character in: " << error.what();
  }
}

inline void expect_model_error(const std::string& code, const std::string& part,
                               const std::function<void()>& call) {
  expect_file_error(ExitCode::model, code, part, call);
}

}  // namespace scgraft
