// SPDX-License-Identifier: Apache-2.0
#include "model/loess.h"

#include <cmath>
#include <numeric>

#include "runtime/error.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

// Sixty points in no order, three of them at one place.
struct Points {
  std::vector<double> x;
  std::vector<double> y;
};
Points sixty_points() {
  Points p;
  for (int i = 0; i < 60; ++i) p.x.push_back((i * 37) % 60 / 10.0);
  p.x[5] = p.x[20] = p.x[6];
  for (int i = 0; i < 60; ++i) {
    const double x = p.x[static_cast<size_t>(i)];
    p.y.push_back(i % 3 == 0 ? x * x / 10 : x / 2);
  }
  return p;
}

TEST(LoessTest, AgreesWithSkmisc) {
  // skmisc.loess 0.5.3: loess(x, y, span=0.5, degree=2).fit()
  const Points p = sixty_points();
  const std::vector<double> curve = loess(p.x, p.y, 0.5);
  const double first[] = {-0.00365284520807537, 1.7002688671612798, 0.5201580702428292,
                          2.5716881043388002};
  const double last[] = {1.4089351561459356, 0.3201869376815441, 2.2561330825317207,
                         0.924748799065818};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(curve[i], first[i], 1e-9) << i;
    EXPECT_NEAR(curve[56 + i], last[i], 1e-9) << i;
  }
  EXPECT_NEAR(std::accumulate(curve.begin(), curve.end(), 0.0), 85.16054228161964, 1e-8);
}

TEST(LoessTest, ReproducesAParabolaExactly) {
  std::vector<double> x;
  std::vector<double> y;
  for (int i = 0; i < 200; ++i) {
    x.push_back(std::sqrt(i + 1.0));
    y.push_back(3 - 2 * x.back() + 0.5 * x.back() * x.back());
  }
  const std::vector<double> curve = loess(x, y, 0.3);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(curve[i], y[i], 1e-11) << i;
}

TEST(LoessTest, TheOrderOfPointsDoesNotMatter) {
  const Points p = sixty_points();
  const std::vector<double> curve = loess(p.x, p.y, 0.3);
  Points reversed{{p.x.rbegin(), p.x.rend()}, {p.y.rbegin(), p.y.rend()}};
  const std::vector<double> again = loess(reversed.x, reversed.y, 0.3);
  for (size_t i = 0; i < 60; ++i) EXPECT_NEAR(curve[i], again[59 - i], 1e-12);
}

TEST(LoessTest, NeighbourhoodsThatDetermineNoParabolaGiveFiniteValues) {
  // Half of the points at one place, the rest at two: whole neighbourhoods have one distinct x.
  std::vector<double> x(100, 1.0);
  std::vector<double> y(100, 2.0);
  for (size_t i = 50; i < 100; ++i) x[i] = i % 2 == 0 ? 5.0 : 6.0, y[i] = 4.0;
  const std::vector<double> curve = loess(x, y, 0.3);
  EXPECT_NEAR(curve[0], 2, 1e-9);
  EXPECT_NEAR(curve[99], 4, 1e-9);
}

TEST(LoessTest, OnePlaceGivesTheMeanAndNothingGivesNothing) {
  EXPECT_EQ(loess(std::vector<double>{2, 2, 2}, std::vector<double>{1, 2, 6}, 0.3),
            (std::vector<double>{3, 3, 3}));
  EXPECT_TRUE(loess({}, {}, 0.3).empty());
  EXPECT_THROW(loess({}, {}, 0), ConfigError);
}

}  // namespace
}  // namespace scgraft
