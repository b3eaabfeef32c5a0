// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "adapters/adapter.h"

namespace scgraft {

// The encoder adapter: bottlenecks (adapters/bottleneck.h) inside the layers. Options' layout says
// where:
//
//   "norm"      after the first norm, with a skip: h = A(LN1(..)), which the feed-forward part
//   reads
//               and adds to. <layer>.space_adapter.*
//   "parallel"  the same, and a second one without skip beside the feed-forward part, halved:
//               y = LN2(..) + 0.5 A'(h). <layer>.space_adapter.* and <layer>.mlp_adapter.*
//   "branch"    on the attention's branch before the residual, with a skip. <layer>.space_adapter.*
//
// Source: scPEFT, whose two code lines have the first and the second layout on scGPT, and the third
// on scFoundation.
std::unique_ptr<Adapter> make_encoder_adapter(const AdapterOptions& options, Backbone& backbone,
                                              uint64_t seed);

}  // namespace scgraft
