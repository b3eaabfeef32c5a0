// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "adapters/adapter.h"

namespace scgraft {

// What the kinds have in common that sit beside linear projections.

// A projection that gets an adapter.
struct Projection {
  int layer = 0;
  uint32_t target = 0;  // of q, k, v, out, ffn_in, ffn_out
  std::string site;     // of Backbone::linear_sites()
};

// The projections that options ask for, layer by layer, in the order of the targets. Writes the
// last layer into the options. Throws ConfigError for layers that the backbone has not, for an
// unknown target and for none.
std::vector<Projection> projections(AdapterOptions& options, const Backbone& backbone);

// Before a merge: the rows of a projection's weight, in host memory. A weight in a mapped file,
// which is read-only, gets memory of its own.
Tensor take_rows(Linear& linear);
// Puts rows of host memory into the weight.
void put_rows(Linear& linear, const Tensor& rows);

}  // namespace scgraft
