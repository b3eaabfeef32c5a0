// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <optional>
#include <string>

#include "runtime/context.h"
#include "runtime/tensor.h"

namespace scgraft {

struct TraceOptions {
  // Also gradients of a loss, under "grad.<parameter>". Of scGPT:
  //   ""       class-weighted cross entropy (needs labels and class weights), by what the adapter
  //            of the folder trains, or by everything when there is none; of a perturbation network
  //            squared error over all tokens
  //   "cls"    plain cross entropy, by everything
  //   "multi"  masked MSE of both decoders + weighted cross entropy + 10 ECS + 10 CCE, by
  //            everything
  //   "total"  of a model of several batches: masked MSE and zero loss of both decoders + 10 ECS +
  //            the adversarial head's cross entropy, reversed below it, by everything
  // Of Geneformer and scBERT "" alone: mean cross entropy of the head that the checkpoint has. Of
  // scFoundation "" alone: loss_mse, the mean squared error of predictions, over the hidden entries
  // of decoder_data or over all where none is hidden, plus loss_cls, the mean cross entropy of the
  // classifier; of those that the inputs have targets and labels for.
  std::optional<std::string> gradient;
  DType product = DType::f32;  // type in which frozen weights are multiplied
  // What the published code does where scgraft computes something else by default: keys of scBERT
  // and of scFoundation's decoder are shifted by the largest of the batch, not of the cell; padding
  // of scGPT counts in averages over a cell and in batch norms, which take the domain of the first
  // cell for all.
  bool upstream = false;
  // Of the gene_values of a perturbation network: all genes are read, not only those that one of
  // the cells expresses (model/scgpt/perturbation.h).
  bool all_genes = false;
  // Which network of a checkpoint that has several, as scFoundation's: "cell", "rde" or "gene";
  // empty: the one that its loader takes by default. Throws ConfigError for other backbones.
  std::string branch = {};
};

// Runs a checkpoint folder (model/folder_kind.h) on given tokens and returns every named
// activation, so that a converted checkpoint can be compared with the original program's.
//
//   scGPT       src [batch, seq] i64 token ids, values [batch, seq] f32, src_key_padding_mask
//               [batch, seq] bool, true = padding; optional target_values [batch, seq],
//               celltype_labels [batch] i64, class_weight [classes]. Where the model reads them
//               input_pert_flags [batch, seq] i64 and batch_labels [batch] i64. A
//               perturbation network also predicts cells by genes, beside or without these tokens:
//               gene_ids [genes] i64 token ids, gene_values and pert_flags [cells, genes] give
//               pred_gene_values [cells, genes]. A model with batch
//               norms of domains is run twice, its arrays are called eval_... and train_...
//   Geneformer  input_ids, or masked_input_ids, [batch, seq] i64, attention_mask [batch, seq], 1 =
//   a
//               token; optional labels [batch, seq] or [batch], below 0 = none
//   scBERT      tokens, or input_tokens, [batch, seq] i64; optional labels [batch, seq] or [batch]
//   scFoundation  for predictions encoder_data [batch, seq] f32, encoder_position_gene_ids [batch,
//               seq] i64, encoder_data_padding [batch, seq] bool, true = padding, and all entries,
//               decoder_data [batch, entries] f32, decoder_position_gene_ids [batch, entries] i64;
//               for embeddings of cells pretrain_gene_x [batch, entries] f32; one of both at least.
//               Optional target_values [batch, entries] of the predictions and labels [batch] of
//               the cells.
//               Its padding is in the batch, as in the published code, and has results too
//
// Results have padded shapes [batch, seq, dim] with zeros at padding, under the names of the
// recordings: layer{i}_in, layer{i}_attn_out, layer{i}_out, ..., logits, losses; what the
// checkpoint has no head or the inputs no labels for is left out. Throws DataError naming the input
// that is missing or has another shape.
std::map<std::string, Tensor> trace_checkpoint(Context& ctx, const std::string& folder,
                                               const std::map<std::string, Tensor>& inputs,
                                               const TraceOptions& options);

}  // namespace scgraft
