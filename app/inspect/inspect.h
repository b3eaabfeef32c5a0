// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "app/session.h"

namespace scgraft {

// What a path holds, decided by content; the name only where there is no content to go by.
enum class PathKind { h5ad, weights, adapter_folder, run_folder, weights_folder };

// Throws DataError: E-NO-FILE (nothing there), E-INSPECT-KIND (none of these).
PathKind path_kind(const std::string& path);

// Each writes what it found into session.result() and at most twelve lines of text.

// n_obs, n_vars, x: {format, dtype}, values, gene_ids, obs: {COLUMN: {kind, n_unique}}, slots,
// obsm, uns, expression: {slot, kind, reason}; with a model also genes: {matched, total, ...}.
//   model  its folder, or empty
void inspect_h5ad(Session& session, const std::string& path, const std::string& model);

// kind, layout, tensors, parameters, bytes, dtypes, section, fingerprint; of a folder also config,
// sizes, and run (as inspect_run) when the model was made there.
void inspect_weights(Session& session, const std::string& path);

// type, base, labels, parameters, trained, metrics, files.
void inspect_adapter(Session& session, const std::string& path);

// What the events of a run say.
struct RunSummary {
  nlohmann::json values;  // events, last event of every split, best validation loss
  std::string text;       // a line for each but the first
};
// Of a folder with metrics.jsonl; without it there are no events.
RunSummary summary_of_run(const std::string& folder);

// events, last event of every split, best validation loss, files.
void inspect_run(Session& session, const std::string& path);

}  // namespace scgraft
