// SPDX-License-Identifier: Apache-2.0
#include "app/run_main.h"

#include <algorithm>
#include <exception>
#include <new>
#include <ostream>

#include "app/cli.h"
#include "app/logging.h"
#include "app/report.h"
#include "app/session.h"
#include "app/signals.h"
#include "runtime/error.h"
#include "training/run_events.h"

namespace scgraft {
namespace {

// Known before parsing, because parsing can fail.
bool wants_json(const std::vector<std::string>& arguments) {
  const auto end = std::find(arguments.begin(), arguments.end(), "--");
  return std::find(arguments.begin(), end, "--json") != end;
}

void require_written(std::ostream& out) {
  out.flush();
  require<StorageError>(out.good(), "the answer could not be written to standard output");
}

int run(const std::vector<std::string>& arguments, std::ostream& out, Session& session) {
  session.set_command_line(arguments);
  if (const auto text = parse_command_line(arguments, session)) {
    out << *text;  // --help, --version
    require_written(out);
    return 0;
  }
  session.start();
  session.run_verb();
  if (session.flags().json) out << success_document(session);
  require_written(out);
  return session.exit_code();
}

int fail(const Error& error, bool json, std::ostream& out, std::ostream& err, bool colour) {
  err << error_text(error, colour);
  err.flush();
  if (json) {
    out << error_document(error);
    out.flush();
  }
  return static_cast<int>(error.exit_code());
}

}  // namespace

int run_main(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err,
             const Terminal& terminal) {
  const bool json = wants_json(arguments);
  Session session(out, err, terminal);
  const LogScope log_scope(session.log());
  try {
    return run(arguments, out, session);
  } catch (const StoppedError& error) {
    const int signal = stop_signal();
    const auto exit = signal > 0 ? static_cast<ExitCode>(128 + signal) : error.exit_code();
    return fail(StoppedError(error.what(), exit), json, out, err, session.colour());
  } catch (const Error& error) {
    return fail(error, json, out, err, session.colour());
  } catch (const std::bad_alloc&) {
    Error error("the memory of this machine is not enough for this run", "E-MEMORY");
    error.set_hint("more memory, or fewer genes per cell where the verb has --max-genes");
    return fail(error, json, out, err, session.colour());
  } catch (const std::exception& error) {
    return fail(Error(error.what()), json, out, err, session.colour());
  } catch (...) {
    return fail(Error("an exception of unknown type"), json, out, err, session.colour());
  }
}

}  // namespace scgraft
