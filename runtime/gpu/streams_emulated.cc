// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/streams_emulated.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/gpu/host_waits.h"

namespace scgraft::gpu {
namespace {

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

struct Queue;

// A copy, or a wait for the work of another stream up to `until`.
struct Work {
  int64_t ticket;
  void* to = nullptr;
  const void* from = nullptr;
  int64_t nbytes = 0;
  bool to_host = false;
  std::vector<char> bytes = {};  // on their way to the host
  std::shared_ptr<Queue> other = {};
  int64_t until = 0;
};

// The work of one stream in order; ticket 1 is the first.
struct Queue {
  int64_t tickets = 0;        // given so far
  std::deque<Work> pending;   // not done
  std::deque<Work> arriving;  // done; the host has not waited for it
};

// One lock for all of it: hosts enqueue from several threads.
std::mutex& streams_mutex() {
  static std::mutex& instance = *new std::mutex;
  return instance;
}

std::vector<std::shared_ptr<Queue>>& live_queues() {
  // Never destroyed: contexts with static lifetime end after main.
  static auto& instance = *new std::vector<std::shared_ptr<Queue>>;
  return instance;
}

// Does the work of a queue up to a ticket.
void run(Queue& queue, int64_t until) {
  while (!queue.pending.empty() && queue.pending.front().ticket <= until) {
    Work work = std::move(queue.pending.front());
    queue.pending.pop_front();
    if (work.other) {
      run(*work.other, work.until);
      queue.arriving.push_back(std::move(work));
    } else if (work.to_host) {
      const auto* bytes = static_cast<const char*>(work.from);
      work.bytes.assign(bytes, bytes + work.nbytes);
      queue.arriving.push_back(std::move(work));
    } else {
      std::memcpy(work.to, work.from, static_cast<size_t>(work.nbytes));
    }
  }
}

// What the host finds after it waited for the work of a queue up to a ticket.
void arrive(Queue& queue, int64_t until) {
  run(queue, until);
  while (!queue.arriving.empty() && queue.arriving.front().ticket <= until) {
    const Work work = std::move(queue.arriving.front());
    queue.arriving.pop_front();
    if (work.other)
      arrive(*work.other, work.until);
    else
      std::memcpy(work.to, work.bytes.data(), work.bytes.size());
  }
}

bool overlaps(const void* a, const void* b, int64_t a_bytes, int64_t b_bytes) {
  const auto* x = static_cast<const char*>(a);
  const auto* y = static_cast<const char*>(b);
  return x < y + b_bytes && y < x + a_bytes;
}

}  // namespace
}  // namespace scgraft::gpu

struct CUstream_st {
  std::shared_ptr<scgraft::gpu::Queue> queue;
};

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<scgraft::gpu::Queue> queue;  // null: of the stream that waits for all others
  int64_t ticket = 0;
};

namespace scgraft::gpu {

CopyTime& emulated_copy_time() {
  static CopyTime time = CopyTime::late;
  return time;
}

namespace emulated {

void enqueue_copy(StreamHandle stream, void* to, const void* from, int64_t nbytes, bool to_host) {
  const std::lock_guard lock(streams_mutex());
  if (stream == nullptr) {
    for (const auto& queue : live_queues()) run(*queue, kAll);
    std::memcpy(to, from, static_cast<size_t>(nbytes));
    return;
  }
  Queue& queue = *stream->queue;
  const bool unread = std::none_of(
      queue.pending.begin(), queue.pending.end(),
      [&](const Work& work) { return work.other || overlaps(work.from, to, work.nbytes, nbytes); });
  if (unread) std::memset(to, 0xff, static_cast<size_t>(nbytes));
  queue.pending.push_back(
      {.ticket = ++queue.tickets, .to = to, .from = from, .nbytes = nbytes, .to_host = to_host});
  if (emulated_copy_time() == CopyTime::early) arrive(queue, kAll);
}

void run_pending(StreamHandle stream) {
  const std::lock_guard lock(streams_mutex());
  if (stream != nullptr) return run(*stream->queue, kAll);
  for (const auto& queue : live_queues()) run(*queue, kAll);
}

void run_pending_of(const void* data, int64_t nbytes) {
  const std::lock_guard lock(streams_mutex());
  for (const auto& queue : live_queues()) {
    int64_t last = 0;
    for (const Work& work : queue->pending)
      if (!work.other && overlaps(work.to_host ? work.from : work.to, data, work.nbytes, nbytes))
        last = work.ticket;
    run(*queue, last);
  }
}

void finish_all() {
  const std::lock_guard lock(streams_mutex());
  for (const auto& queue : live_queues()) arrive(*queue, kAll);
}

}  // namespace emulated

StreamHandle create_stream(Device) {
  const std::lock_guard lock(streams_mutex());
  live_queues().push_back(std::make_shared<Queue>());
  return new CUstream_st{live_queues().back()};
}

void destroy_stream(Device, StreamHandle stream) noexcept {
  const std::lock_guard lock(streams_mutex());
  arrive(*stream->queue, kAll);
  std::erase(live_queues(), stream->queue);
  delete stream;
}

void synchronize(Device, StreamHandle stream) {
  count_wait(HostWait::stream);
  if (stream == nullptr) return emulated::finish_all();
  const std::lock_guard lock(streams_mutex());
  arrive(*stream->queue, kAll);
}

EventHandle create_event(Device) { return new CUevent_st; }
void destroy_event(EventHandle event) noexcept { delete event; }

void record(Device, EventHandle event, StreamHandle stream) {
  const std::lock_guard lock(streams_mutex());
  event->time = std::chrono::steady_clock::now();
  event->queue = stream == nullptr ? nullptr : stream->queue;
  event->ticket = stream == nullptr ? 0 : stream->queue->tickets;
}

void wait(Device, StreamHandle stream, EventHandle event) {
  const std::lock_guard lock(streams_mutex());
  if (stream == nullptr || event->queue == nullptr || event->queue == stream->queue) return;
  Queue& queue = *stream->queue;
  queue.pending.push_back(
      {.ticket = ++queue.tickets, .other = event->queue, .until = event->ticket});
}

void synchronize(EventHandle event) {
  count_wait(HostWait::event);
  const std::lock_guard lock(streams_mutex());
  if (event->queue == nullptr) return;
  arrive(*event->queue, event->ticket);
}

double milliseconds(EventHandle begin, EventHandle end) {
  return std::chrono::duration<double, std::milli>(end->time - begin->time).count();
}

}  // namespace scgraft::gpu
