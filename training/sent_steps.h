// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <vector>

#include "runtime/stream.h"
#include "training/objective.h"
#include "training/parameter_block.h"

namespace scgraft {

// What became of steps, on its way from the device to the host: the host enqueues further steps
// while it does not know. First in, first out.
class SentSteps {
 public:
  // At most `room` steps may be under way.
  SentSteps(Device device, int64_t room);

  struct Result {
    UpdateState state;
    ObjectiveSums::Totals sums;
  };

  // After the update of a step: enqueues copies into pinned memory and an event behind them.
  void send(Context& ctx, const ParameterBlock& block, const ObjectiveSums& sums);
  int64_t under_way() const { return under_way_; }
  // The oldest step; waits for it, and not for work that was enqueued later.
  Result take();
  // Forgets the steps that are under way.
  void drop() { under_way_ = 0; }

 private:
  struct Slot {
    Tensor state;  // staging memory
    ObjectiveSums::Sent sums;
    std::optional<Event> arrived;  // none on the CPU
  };

  std::vector<Slot> slots_;
  size_t next_ = 0;  // slot of the next send()
  int64_t under_way_ = 0;
};

}  // namespace scgraft
