// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "app/session.h"
#include "io/h5ad_writer.h"
#include "training/annotator.h"

namespace scgraft {

// Name of the new columns when the user gives none: the run's name, letters, digits and "_" only.
std::string default_annotation_key(const std::string& adapter);

// Writes an annotation into a copy of its file, under a key K:
//   obs   K (categorical), K_conf, K_margin, K_entropy (f32), K_status, K_second (categorical),
//         K_logreg, K_knn (the baselines' labels)
//   obsm  K_probabilities (data frame), X_K (embedding)
//   var   K_in_model      uns  K (where it came from)
class AnnotationOutput {
 public:
  // Copies the file. ConfigError E-SLOT-EXISTS when the key is taken, unless `overwrite`.
  AnnotationOutput(const std::string& input, const std::string& output, Overwrite overwrite,
                   std::string key);
  void write(const Annotation& annotation, Annotator& annotator, const H5ad& file,
             const Session& session);

 private:
  H5adWriter writer_;
  std::string key_;
};

// cell id, label, confidence, margin, entropy, status, second and the baselines' labels, one row
// per cell with a header; RFC 4180. In pieces, to `write`.
void write_annotation_csv(const H5ad& file, const Annotation& annotation,
                          const std::vector<std::string>& labels,
                          const std::function<void(std::string_view)>& write);

}  // namespace scgraft
