// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "adapters/adapter.h"

namespace scgraft {

// The encoder adapter: bottlenecks (adapters/bottleneck.h) inside the layers. Options' layout says
// where:
//
//   "norm"      after the norm in the middle, with a skip: h = A(LN1(..)), which the feed-forward
//               part reads and adds to. <layer>.space_adapter.*
//   "parallel"  the same, and a second one without skip beside the feed-forward part, halved:
//               y = LN2(..) + 0.5 A'(h). <layer>.space_adapter.* and <layer>.mlp_adapter.*
//   "branch"    on the attention's branch before the residual, with a skip. <layer>.space_adapter.*
//   "normed"    the same with a layer norm in front, of whose result the skip is too:
//               mid = x + n + A(n), n = LN(attention). <layer>.space_adapter.*
//   "residual"  in the place of the residual around the feed-forward part, with a layer norm in
//               front and without skip: y = A(LN(mid)) + ffn(mid). <layer>.mlp_adapter.*
//
// The last two change what the backbone computes from the start on, and want start: uniform; they
// are there for what was trained with them. Source: scPEFT, whose two code lines have the first and
// the second layout on scGPT; it has the third on scFoundation and the last two on scBERT. Only
// layers with FAVOR+ attention have a place for "residual".
std::unique_ptr<Adapter> make_encoder_adapter(const AdapterOptions& options, Backbone& backbone,
                                              uint64_t seed);

}  // namespace scgraft
