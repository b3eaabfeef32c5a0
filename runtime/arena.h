// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/tensor_view.h"

namespace scgraft {

// Memory with bump allocation, rewound by scope, so that nothing is allocated inside a step.
// peak() is what a step needed.
//
//   Arena::Scope scratch(ctx.scratch());            // gives everything back at the brace
//   TensorView scores = scratch.take({rows, keys}, DType::f32);
//
// On the CPU one range of address space is reserved once; its pages cost memory only when they are
// first used. On a CUDA device memory is a list of chunks: one more is allocated when they are
// full, and when all of it has been given back they are replaced by a single chunk of the largest
// use so far. From the second step of a kind on, nothing is allocated.
//
// Memory is not cleared. Not thread-safe: take before a parallel region, not inside it.
class Arena {
 public:
  // limit: bytes; 0 means as much as there is. On the CPU of this arena, on a CUDA device of all
  // that the program holds there, so that arenas and weights share it.
  // op: where the name of the operation at work stands, for error messages; may be null.
  explicit Arena(Device device = Device::cpu(), int64_t limit = 0, const char* const* op = nullptr);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Throws Error("E-MEMORY") with operation, type, shape, the bytes needed and free when it is
  // full.
  TensorView take(Shape shape, DType dtype);

  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  // Forgets the peak, e.g. after a warm-up step.
  void reset_peak() { peak_ = used_; }
  // Gives memory above used() back to the system.
  void trim();
  // How often memory was asked for so far: a step in a steady state leaves it as it was.
  int64_t allocations() const { return allocations_; }

 private:
  // Where the next take goes.
  struct Mark {
    size_t chunk = 0;
    int64_t offset = 0;
    int64_t used = 0;
  };

 public:
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
    ~Scope() { arena_.rewind(mark_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    TensorView take(Shape shape, DType dtype) { return arena_.take(shape, dtype); }

   private:
    Arena& arena_;
    Mark mark_;
  };

 private:
  struct Chunk {
    std::byte* data = nullptr;
    int64_t nbytes = 0;
  };

  Mark mark() const { return {chunk_, offset_, used_}; }
  void rewind(const Mark& mark);
  void reserve_host();
  // False: there is no memory for it.
  bool make_room(int64_t nbytes);
  bool add_chunk(int64_t nbytes);
  // Bytes of a CUDA device that may still be allocated.
  int64_t allowed() const;
  [[noreturn]] void throw_full(int64_t nbytes, const Shape& shape, DType dtype) const;
  void release_chunks(size_t first);

  Device device_;
  std::vector<Chunk> chunks_;
  int64_t limit_ = 0;
  const char* const* op_ = nullptr;
  size_t chunk_ = 0;    // the one in use
  int64_t offset_ = 0;  // bytes used of it
  int64_t used_ = 0;    // bytes in use of all chunks
  int64_t peak_ = 0;
  int64_t largest_ = 0;  // like peak_, never forgotten
  int64_t allocations_ = 0;
};

}  // namespace scgraft
