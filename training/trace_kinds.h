// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "training/trace.h"
#include "training/trace_arrays.h"

namespace scgraft {

// trace_checkpoint() for a folder of each kind (model/folder_kind.h); one line per backbone in
// trace.cc.
TraceArrays trace_geneformer(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                             const TraceOptions& options);
TraceArrays trace_scbert(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                         const TraceOptions& options);
TraceArrays trace_scfoundation(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                               const TraceOptions& options);
TraceArrays trace_scgpt(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                        const TraceOptions& options);

}  // namespace scgraft
