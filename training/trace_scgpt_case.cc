// SPDX-License-Identifier: Apache-2.0
#include "training/trace_scgpt_case.h"

#include "runtime/error.h"

namespace scgraft {
namespace {

std::vector<int32_t> labels_of(const Tensor& t, const char* name, int64_t cells) {
  require<DataError>(t.shape() == Shape{cells}, name, " must be [", cells, "]");
  std::vector<int32_t> labels;
  for (int64_t b = 0; b < cells; ++b) labels.push_back(static_cast<int32_t>(element(t, b)));
  return labels;
}

}  // namespace

std::vector<CellView> ScgptCase::cells() const {
  std::vector<CellView> all;
  for (size_t b = 0; b < genes.size(); ++b)
    all.push_back({.cell = static_cast<int64_t>(b),
                   .genes = genes[b],
                   .values = values[b],
                   .targets = targets[b],
                   .masked = masked[b],
                   .label = labels[b]});
  return all;
}

ScgptCase read_scgpt_case(const TraceArrays& inputs, const ScgptCaseOptions& options) {
  constexpr const char* kNeeded = "src, values and src_key_padding_mask";
  const Tensor& padding = required_input(inputs, "src_key_padding_mask", kNeeded);
  ScgptCase c{.grid = TokenGrid(padding, false)};
  if (options.keep_padding) {
    c.grid.keep_all();
    for (int64_t i = 0; i < padding.numel(); ++i)
      c.visible.push_back(element(padding, i) == 0 ? 1 : 0);
  }
  const Tensor& src = required_input(inputs, "src", kNeeded);
  const Tensor& values = required_input(inputs, "values", kNeeded);
  c.grid.require_grid(src, "src");
  c.grid.require_grid(values, "values");
  c.genes = c.grid.tokens_of<int32_t>(src);
  c.values = c.grid.tokens_of<float>(values);
  c.targets.resize(c.genes.size());
  c.masked.resize(c.genes.size());
  if (const Tensor* targets = optional_input(inputs, "target_values")) {
    c.grid.require_grid(*targets, "target_values");
    c.targets = c.grid.tokens_of<float>(*targets);
    for (size_t b = 0; b < c.values.size(); ++b)
      for (const float value : c.values[b])
        c.masked[b].push_back(
            options.flags || static_cast<double>(value) == options.mask_value ? 1 : 0);
  }
  if (options.flags) {
    const Tensor& flags =
        required_input(inputs, "input_pert_flags",
                       "src, values, src_key_padding_mask and, of a perturbation network, "
                       "input_pert_flags");
    c.grid.require_grid(flags, "input_pert_flags");
    for (const std::vector<int32_t>& row : c.grid.tokens_of<int32_t>(flags))
      c.flags.insert(c.flags.end(), row.begin(), row.end());
  }
  if (options.batches)
    c.batches = labels_of(
        required_input(inputs, "batch_labels",
                       "src, values, src_key_padding_mask and, of a model of several batches, "
                       "batch_labels"),
        "batch_labels", c.grid.batch);
  if (const Tensor* labels = optional_input(inputs, "celltype_labels"))
    c.labels = labels_of(*labels, "celltype_labels", c.grid.batch);
  else
    c.labels.assign(static_cast<size_t>(c.grid.batch), -1);
  if (const Tensor* weights = optional_input(inputs, "class_weight"))
    for (int64_t i = 0; i < weights->numel(); ++i)
      c.class_weight.push_back(static_cast<float>(element(*weights, i)));
  return c;
}

}  // namespace scgraft
