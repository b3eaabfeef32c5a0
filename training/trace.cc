// SPDX-License-Identifier: Apache-2.0
#include "training/trace.h"

#include "model/folder_kind.h"
#include "training/trace_kinds.h"

namespace scgraft {
namespace {

struct Kind {
  const char* name;
  TraceArrays (*trace)(Context&, const std::string& folder, const TraceArrays& inputs,
                       const TraceOptions&);
};
constexpr Kind kKinds[] = {
    {"geneformer", trace_geneformer},
    {"scbert", trace_scbert},
    {"scfoundation", trace_scfoundation},
    {"scgpt", trace_scgpt},
};

}  // namespace

std::map<std::string, Tensor> trace_checkpoint(Context& ctx, const std::string& folder,
                                               const std::map<std::string, Tensor>& inputs,
                                               const TraceOptions& options) {
  const std::string found = folder_kind(folder);
  if (!options.branch.empty() && found != "scfoundation")
    throw ConfigError(cat("branch=", options.branch, " is for checkpoints with several networks, ",
                          folder, " is of the kind ", found),
                      "E-CONFIG");
  for (const Kind& kind : kKinds)
    if (found == kind.name) return kind.trace(ctx, folder, inputs, options);
  throw Error(cat("no trace for models of the kind ", found));
}

}  // namespace scgraft
