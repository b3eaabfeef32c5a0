// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/backbone.h"

namespace scgraft {

// What a user can ask of an adapter; every kind reads the fields that concern it.
struct AdapterOptions {
  std::string type = "lora";  // a kind, or several: "token+encoder+lora"
  int64_t rank = 8;           // lora, hra: r
  double alpha = 16;          // lora: lora_alpha
  double dropout = 0;         // lora: dropout of the adapter's input
  std::vector<std::string> targets = {"q",
                                      "v"};  // lora, hra, oft: of q, k, v, out, ffn_in, ffn_out
  int64_t blocks = 4;                        // oft: of each projection's input
  int64_t block_size = 0;                    // oft: instead, how wide they are; 0: by blocks
  double constraint = 0;                     // oft: bound of the rotation; adapters/oft.h
  double width = 0.25;                       // encoder, token: of the bottleneck, times dim
  std::string layout = "norm";               // encoder: where in a layer; adapters/encoder.h
  std::string start = "identity";            // encoder, token: or "uniform", as scPEFT
  int64_t tokens = 8;                        // prefix, prefix_tuning: rows in each layer
  std::string sharing = "none";              // prefix: "layers" have the same rows, or none
  int first_layer = 0;                       // layers first_layer ... last_layer get the adapter
  int last_layer = -1;                       // -1: the last layer of the backbone
  // Of a union whose parts were not all asked for the same: one for each, in the order of the type.
  std::vector<AdapterOptions> parts = {};
};

// Small trainable parameters grafted onto a frozen backbone.
class Adapter {
 public:
  virtual ~Adapter() = default;
  virtual std::string_view kind() const = 0;  // "lora"
  virtual const AdapterOptions& options() const = 0;

  // Puts the adapter into its places; it must outlive the backbone's use or be detached first. A
  // fresh adapter leaves every output as it was, bit for bit. The backbone is not frozen here.
  virtual void attach(Backbone& backbone) = 0;
  // Takes it out: the backbone computes what it did before, bit for bit.
  virtual void detach(Backbone& backbone) = 0;

  // What is trained, saved and counted; names are the keys of adapter files.
  virtual std::vector<Parameter*> parameters() = 0;

  // Adds the adapter into the backbone's weights and detaches it. False: this kind cannot be
  // merged.
  virtual bool merge_into(Backbone& backbone) = 0;
  // Restores the weights that merge_into changed, bit for bit, and attaches again.
  virtual void unmerge_from(Backbone& backbone) = 0;
};

// Makes a fresh adapter for a backbone. Throws ConfigError listing the kinds for an unknown type,
// and for options that do not fit the backbone. seed: of its initial values. Its parameters are on
// the backbone's device.
std::unique_ptr<Adapter> make_adapter(const AdapterOptions& options, Backbone& backbone,
                                      uint64_t seed);
std::vector<std::string> adapter_kinds();
// Whether make_adapter() knows this type: a kind, or kinds joined by +. They must be different,
// unless options of their own say what each is (AdapterOptions::parts).
bool is_adapter_type(const std::string& type, bool repeated = false);

}  // namespace scgraft
