// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/config.h"

namespace scgraft {

// How the factor on the gradient changes. Small f16 gradients would become zero; multiplied by a
// power of two they do not, and too large a factor shows as a norm that is not finite. So it is
// halved then, and doubled after many steps that were finite.
// Source: dynamic loss scaling as in torch.amp.GradScaler.
struct ScaleRule {
  bool dynamic = false;  // false: the factor stays as it is
  int64_t steps_between_doublings = 2000;
  double largest = 0x1p24;
};

// What became of a step.
enum class StepOutcome : int32_t {
  updated,
  repeat,  // the gradient is not finite, and the factor was halved: the step deserves another try
  not_finite,  // the loss is not finite, or the gradient is not and the factor cannot be smaller
  held         // not looked at, because of an earlier step
};

// What the updates of a run know of themselves. It lives where the parameters do, so that the host
// need not wait for a device to decide about a step; bytes of it are copied as they are.
struct UpdateState {
  int64_t steps_done = 0;  // updates that were made
  double scale = 1;        // factor on the gradient of the next step, a power of two
  int64_t good_steps = 0;  // with this factor
  // From a step that was not finite on no step changes anything, until the host sets this to 0:
  // by then it has enqueued steps after the bad one.
  int64_t stopped = 0;

  // Of the step that was looked at last.
  double norm = 0;        // of the gradient, without the factor
  double scale_used = 1;  // the factor of its gradient
  StepOutcome outcome = StepOutcome::updated;
};

// Decides about a step whose gradient, times state.scale, has this norm; true: it is to be made.
SCGRAFT_HD inline bool decide(UpdateState& state, double norm, bool finite_loss,
                              const ScaleRule& rule) {
  if (state.stopped != 0) {
    state.outcome = StepOutcome::held;
    return false;
  }
  state.scale_used = state.scale;
  state.norm = norm / state.scale;
  // Infinity minus itself is no number.
  if (finite_loss && state.norm - state.norm == 0) {
    ++state.steps_done;
    state.outcome = StepOutcome::updated;
    if (rule.dynamic && ++state.good_steps >= rule.steps_between_doublings) {
      state.good_steps = 0;
      if (state.scale < rule.largest) state.scale *= 2;
    }
    return true;
  }
  state.stopped = 1;
  const bool smaller = rule.dynamic && finite_loss && state.scale > 1;
  state.outcome = smaller ? StepOutcome::repeat : StepOutcome::not_finite;
  if (smaller) {
    state.scale /= 2;
    state.good_steps = 0;
  }
  return false;
}

}  // namespace scgraft
