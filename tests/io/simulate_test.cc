// SPDX-License-Identifier: Apache-2.0
#include "io/simulate.h"

#include "tests/io/h5ad_fixture.h"

namespace scgraft {
namespace {

TEST(SimulateFiles, Writes) {
  TemporaryFolder folder;
  Context ctx;
  simulate_files(ctx, folder / "sim", {}, Overwrite::refuse);
  const H5ad atlas = H5ad::open(folder / "sim/atlas.h5ad");
  EXPECT_EQ(atlas.n_obs(), 4000);
  EXPECT_EQ(atlas.n_vars(), 1200);
}

}  // namespace
}  // namespace scgraft
