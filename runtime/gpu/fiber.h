// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>

namespace scgraft::gpu {

// A stack of its own and the point where it goes on. One OS thread at a time drives a fibre; the
// switch is a handful of instructions and saves no signal mask. Address and thread sanitizer are
// told about each switch. x86-64 only.
class Fiber {
 public:
  using Entry = void (*)();

  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Stands for the calling OS thread on its own stack: what fibres switch back to.
  void adopt_thread();

  // The next switch here calls `entry` on an empty stack; whatever the fibre did before is
  // forgotten, destructors of what was on its stack included. `entry` begins with entered() and
  // ends with leave(). Throws Error when there is no memory for a stack.
  void start(Entry entry);
  static void entered();

  // Stops `from`, which is running, and goes on in `to`. Returns when something switches to `from`.
  static void switch_to(Fiber& from, Fiber& to);
  // Goes on in `to` for good; `from` may be started again.
  [[noreturn]] static void leave(Fiber& from, Fiber& to);
  // As leave, while calls of `from` have not returned. No destructors run.
  [[noreturn]] static void abandon(Fiber& from, Fiber& to);

 private:
  void* stack_pointer_ = nullptr;
  std::byte* mapping_ = nullptr;  // guard page and stack; null for an OS thread
  const void* bottom_ = nullptr;  // lowest usable byte
  size_t size_ = 0;               // usable bytes
  void* fake_stack_ = nullptr;    // the address sanitizer's
  void* tsan_ = nullptr;          // the thread sanitizer's fibre
  bool inside_ = false;           // calls on this stack have not returned
};

}  // namespace scgraft::gpu
