// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "adapters/scpeft.h"
#include "model/parameter.h"
#include "runtime/context.h"
#include "runtime/tensor.h"

namespace scgraft {

// What traces of all backbones do with their arrays: padded on the outside, packed inside.

using TraceArrays = std::map<std::string, Tensor>;

// Null when there is none.
const Tensor* optional_input(const TraceArrays& inputs, const char* name);
// Throws DataError (E-TRACE-INPUT) naming the array and all that are `needed`.
const Tensor& required_input(const TraceArrays& inputs, const char* name, const char* needed);
// Element i of an array of any type.
double element(const Tensor& t, int64_t i);

// The places of tokens in padded arrays [batch, seq].
struct TokenGrid {
  int64_t batch = 0;
  int64_t seq = 0;
  std::vector<std::vector<int64_t>> columns;  // of the tokens of each row

  // mask [batch, seq]; a place holds a token where it equals `token`.
  TokenGrid(const Tensor& mask, bool token);

  // Every place holds a token.
  void keep_all();
  // Throws DataError unless the array is [batch, seq].
  void require_grid(const Tensor& t, const char* name) const;
  // The numbers of the tokens of each row.
  template <class T>
  std::vector<std::vector<T>> tokens_of(const Tensor& t) const {
    std::vector<std::vector<T>> all;
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<T>& row = all.emplace_back();
      for (const int64_t s : columns[static_cast<size_t>(b)])
        row.push_back(static_cast<T>(element(t, b * seq + s)));
    }
    return all;
  }
  // Packed rows [tokens, width] to [batch, seq, width], or with width 0 [tokens] to [batch, seq];
  // zeros at padding. Where there are more rows than tokens, as many in each cell, the others stand
  // behind its first token.
  Tensor padded(ConstTensorView packed, int64_t width) const;
};

// In host memory.
Tensor host_copy(ConstTensorView view);
Tensor scalar(double value);
// Of the elements of an f32 array on any device.
double sum_of(ConstTensorView values);

// Mean cross entropy of logits [rows, classes] over the rows with a label; its gradient goes to
// dlogits, empty when not wanted. Throws DataError for a label that is no class, or when there is
// none at all.
double mean_cross_entropy(Context& ctx, ConstTensorView logits, const std::vector<int32_t>& labels,
                          TensorView dlogits);

// Adds the gradients of what was trained as "grad.<name>", those of an adapter under the names and
// in the shapes of its file.
void add_gradients(const ScpeftAdapter& adapter, const std::vector<Parameter*>& trained,
                   TraceArrays& out);

}  // namespace scgraft
