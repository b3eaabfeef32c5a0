// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <vector>

#include "adapters/adapter.h"

namespace scgraft {

// Several adapters at once, "token+encoder": each reads the same options, or those of its own, and
// takes its own places. It can be merged when every part can.
class AdapterUnion : public Adapter {
 public:
  // parts: at least two, made for one backbone.
  AdapterUnion(const AdapterOptions& options, std::vector<std::unique_ptr<Adapter>> parts);

  std::string_view kind() const override { return options_.type; }
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override;
  void detach(Backbone& backbone) override;
  std::vector<Parameter*> parameters() override;
  bool merge_into(Backbone& backbone) override;
  void unmerge_from(Backbone& backbone) override;

 private:
  AdapterOptions options_;
  std::vector<std::unique_ptr<Adapter>> parts_;
};

}  // namespace scgraft
