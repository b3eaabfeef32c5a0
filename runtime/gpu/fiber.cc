// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "runtime/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The runtime exports these, no header of g++ 12 declares them. This file is compiled without
// -fsanitize=thread, so the compiler's own macro does not say that the runtime is there.
#if defined(SCGRAFT_EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

#if !defined(__x86_64__)
#error "fibres are written for x86-64: build with SCGRAFT_CUDA=OFF"
#endif

// void scgraft_fiber_switch(void** save, void* target): what the calling convention wants
// preserved goes onto the old stack and comes from the new one.
asm(R"(
.text
.globl scgraft_fiber_switch
.hidden scgraft_fiber_switch
.type scgraft_fiber_switch, @function
scgraft_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size scgraft_fiber_switch, .-scgraft_fiber_switch
)");
extern "C" void scgraft_fiber_switch(void** save, void* target);

namespace scgraft::gpu {
namespace {

// Sanitizers print their reports on the stack that was caught.
#if defined(__SANITIZE_ADDRESS__) || defined(SCGRAFT_EMULATOR_TSAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

#if defined(__SANITIZE_ADDRESS__)
thread_local Fiber* left = nullptr;  // where the last switch of this OS thread came from
#endif

}  // namespace

Fiber::~Fiber() {
#if defined(SCGRAFT_EMULATOR_TSAN)
  if (mapping_ != nullptr && tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
#endif
  if (mapping_ != nullptr) munmap(mapping_, page_bytes() + kStackBytes);
}

void Fiber::adopt_thread() {
#if defined(SCGRAFT_EMULATOR_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
}

void Fiber::start(Entry entry) {
  if (mapping_ == nullptr) {
    void* mapping = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require<Error>(mapping != MAP_FAILED, "emulator: no memory for the stack of a CUDA thread");
    mapping_ = static_cast<std::byte*>(mapping);
    mprotect(mapping_, page_bytes(), PROT_NONE);
    bottom_ = mapping_ + page_bytes();
    size_ = kStackBytes;
  }
#if defined(__SANITIZE_ADDRESS__)
  // Frames that were abandoned left their red zones behind.
  __asan_unpoison_memory_region(bottom_, size_);
#endif
#if defined(SCGRAFT_EMULATOR_TSAN)
  // A fibre that was abandoned keeps the calls it was in.
  if (inside_ && tsan_ != nullptr) {
    __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
  }
  if (tsan_ == nullptr) tsan_ = __tsan_create_fiber(0);
#endif
  // Entering is a return: six registers and the address of `entry`, above it a return address of
  // zero, which ends back traces. At the first instruction of a function rsp is 8 modulo 16.
  auto* top = reinterpret_cast<uintptr_t*>(mapping_ + page_bytes() + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  stack_pointer_ = top;
  fake_stack_ = nullptr;
  inside_ = true;
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  // This is how the bounds of an OS thread's stack become known.
  if (left != nullptr && left->mapping_ == nullptr) {
    left->bottom_ = bottom;
    left->size_ = size;
  }
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  left = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#if defined(SCGRAFT_EMULATOR_TSAN)
  // 1: the switch orders nothing, otherwise it would hide every race.
  __tsan_switch_to_fiber(to.tsan_, 1);
#endif
  scgraft_fiber_switch(&from.stack_pointer_, to.stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::leave(Fiber& from, Fiber& to) {
  from.inside_ = false;
  abandon(from, to);
}

void Fiber::abandon(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  left = &from;
  __sanitizer_start_switch_fiber(nullptr, to.bottom_, to.size_);
#endif
#if defined(SCGRAFT_EMULATOR_TSAN)
  __tsan_switch_to_fiber(to.tsan_, 1);
#endif
  scgraft_fiber_switch(&from.stack_pointer_, to.stack_pointer_);
  __builtin_unreachable();
}

}  // namespace scgraft::gpu
