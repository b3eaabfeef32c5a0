// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <optional>
#include <string>

#include "runtime/context.h"
#include "runtime/tensor.h"

namespace scgraft {

struct TraceOptions {
  // Also gradients of a loss, under "grad.<parameter>":
  //   ""       class-weighted cross entropy (needs labels and class weights), by what the adapter
  //   of
  //            the folder trains, or by everything when there is none
  //   "cls"    plain cross entropy, by everything
  //   "multi"  masked MSE of both decoders + weighted cross entropy + 10 ECS + 10 CCE, by
  //   everything
  std::optional<std::string> gradient;
  DType product = DType::f32;  // type in which frozen weights are multiplied
  // What the published code does where scgraft computes something else by default: scBERT's keys
  // are shifted by the largest of the whole batch, not of their cell.
  bool upstream = false;
};

// Runs a checkpoint folder on given tokens and returns every named activation, so that a converted
// checkpoint can be compared with the original program's.
//
//   src                    [batch, seq]  i64   token ids
//   values                 [batch, seq]  f32
//   src_key_padding_mask   [batch, seq]  bool  true = padding
//   target_values [batch, seq], celltype_labels [batch] i64, class_weight [classes]   optional
//
// Results have padded shapes [batch, seq, dim] with zeros at padding: gene_emb, value_emb,
// layer{i}_in, layer{i}_attn_out, layer{i}_norm1, layer{i}_out, transformer_output,
// out_mlm_output, out_mvc_output, out_cell_emb, out_cls_output, losses; what the checkpoint has no
// head or the inputs no labels for is left out.
// Throws DataError naming the input that is missing or has another shape.
std::map<std::string, Tensor> trace_checkpoint(Context& ctx, const std::string& folder,
                                               const std::map<std::string, Tensor>& inputs,
                                               const TraceOptions& options);

}  // namespace scgraft
