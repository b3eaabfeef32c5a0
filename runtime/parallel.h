// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <omp.h>

#include <cstdint>
#include <exception>

#include "runtime/context.h"

namespace scgraft {

// While it lives, this thread's OpenMP regions have one thread, as they have inside a parallel
// region: libraries called there (oneDNN) must not wake threads of their own.
class OneThread {
 public:
  OneThread() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

// Calls body(i) for i in [0, n), in any order, on the context's threads. Which thread runs which i
// must not change any result: let every i own its outputs and sum partial results afterwards in a
// fixed order. The first exception a body throws is rethrown here. Throws DeviceError in a context
// of a CUDA device.
template <class Body>
void parallel_for(Context& ctx, int64_t n, Body&& body) {
  ctx.require_cpu();
  const int threads = ctx.threads();
  if (threads == 1 || n <= 1) {
    const OneThread one;
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(scgraft_parallel_error)
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// Index of the calling thread inside a parallel_for body, 0 <= thread_index() < ctx.threads().
// Only for choosing scratch memory, never for choosing what is computed.
int thread_index();

}  // namespace scgraft
