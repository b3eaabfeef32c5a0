// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/tensor_view.h"

namespace scgraft {

// One block of memory with bump allocation, rewound by scope, so that nothing is allocated inside
// a step. Address space is reserved once; pages cost memory only when they are first used, so
// peak() is what a step needed.
//
//   Arena::Scope scratch(ctx.scratch());            // gives everything back at the brace
//   TensorView scores = scratch.take({rows, keys}, DType::f32);
//
// Memory is not cleared. Not thread-safe: take before a parallel region, not inside it.
class Arena {
 public:
  // limit: bytes that may be in use at once; 0 means as much as can be reserved.
  explicit Arena(Device device = Device::cpu(), int64_t limit = 0);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Throws Error("E-MEMORY") with the bytes asked for and the limit when it is full.
  TensorView take(Shape shape, DType dtype);

  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  // Forgets the peak, e.g. after a warm-up step.
  void reset_peak() { peak_ = used_; }
  // Gives the pages above used() back to the system.
  void trim();

  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    TensorView take(Shape shape, DType dtype) { return arena_.take(shape, dtype); }

   private:
    Arena& arena_;
    int64_t mark_;
  };

 private:
  Device device_;
  std::byte* data_ = nullptr;
  int64_t reserved_ = 0;
  int64_t limit_ = 0;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

}  // namespace scgraft
