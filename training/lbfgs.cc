// SPDX-License-Identifier: Apache-2.0
#include "training/lbfgs.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "kernels/ordered_sum.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using Vector = std::vector<double>;

constexpr double kSufficientDecrease = 1e-4;
constexpr double kCurvature = 0.9;
constexpr int kLineSteps = 30;

double dot(const Vector& a, const Vector& b) {
  return ordered_dot(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

double largest(const Vector& v) {
  double m = 0;
  for (const double e : v) m = std::max(m, std::abs(e));
  return m;
}

void add_scaled(Vector& y, double a, const Vector& x) {
  for (size_t i = 0; i < y.size(); ++i) y[i] += a * x[i];
}

// The inverse Hessian as the last few steps show it.
class History {
 public:
  explicit History(int capacity) : capacity_(static_cast<size_t>(capacity)) {}
  void clear() { pairs_.clear(); }
  // step = change of x, change = change of the gradient. A pair without curvature is left out: it
  // would make the direction point uphill.
  void add(Vector step, Vector change) {
    const double sy = dot(step, change);
    const double yy = dot(change, change);
    if (!(sy > 1e-14 * yy)) return;
    if (pairs_.size() == capacity_) pairs_.pop_front();
    pairs_.push_back({std::move(step), std::move(change), 1 / sy, sy / yy});
  }
  // The search direction for a gradient (the two-loop recursion).
  Vector direction(const Vector& gradient) const {
    Vector q(gradient);
    Vector weights(pairs_.size());
    for (size_t i = pairs_.size(); i-- > 0;) {
      weights[i] = pairs_[i].rho * dot(pairs_[i].step, q);
      add_scaled(q, -weights[i], pairs_[i].change);
    }
    const double scale = pairs_.empty() ? 1.0 : pairs_.back().scale;
    for (double& e : q) e *= scale;
    for (size_t i = 0; i < pairs_.size(); ++i)
      add_scaled(q, weights[i] - pairs_[i].rho * dot(pairs_[i].change, q), pairs_[i].step);
    for (double& e : q) e = -e;
    return q;
  }
  bool empty() const { return pairs_.empty(); }

 private:
  struct Pair {
    Vector step;
    Vector change;
    double rho;
    double scale;
  };
  size_t capacity_;
  std::deque<Pair> pairs_;
};

// A point on the search line: how far, the value, and the slope there.
struct LinePoint {
  double t = 0;
  double value = 0;
  double slope = 0;
};

// Minimum of the cubic through two points and their slopes, kept away from the ends of the bracket
// so that it always shrinks.
double between(const LinePoint& a, const LinePoint& b) {
  const double d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t);
  const double square = d1 * d1 - a.slope * b.slope;
  double t = 0.5 * (a.t + b.t);
  if (square >= 0) {
    const double d2 = std::copysign(std::sqrt(square), b.t - a.t);
    const double cubic = b.t - (b.t - a.t) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2);
    if (std::isfinite(cubic)) t = cubic;
  }
  const double low = std::min(a.t, b.t);
  const double margin = 0.1 * std::abs(b.t - a.t);
  return std::clamp(t, low + margin, low + std::abs(b.t - a.t) - margin);
}

// One minimisation: the point, its gradient, and the search for the next one.
class Minimiser {
 public:
  Minimiser(std::span<double> x, const SmoothFunction& function)
      : function_(function), best_(x), x_(x.begin(), x.end()), gradient_(x.size()) {
    value_ = evaluate(x_, gradient_);
    require<NumericalError>(std::isfinite(value_) && std::isfinite(largest(gradient_)),
                            "the loss of a baseline is not finite at its start (", value_,
                            "); look for values that are not finite in the expression matrix");
  }

  // Moves along `direction`; false when no point there is better. `step` and `change` are set to
  // what was added to x and to the gradient.
  bool advance(const Vector& direction, double first_step, Vector& step, Vector& change) {
    direction_ = &direction;
    start_ = {0, value_, dot(direction, gradient_)};
    if (!(start_.slope < 0)) return false;
    trial_x_ = x_;
    trial_gradient_ = gradient_;
    const LinePoint end = search(first_step);
    if (!(end.value < value_) || end.t == 0) return false;
    if (trial_.t != end.t) probe(end.t);
    step = trial_x_;
    change = trial_gradient_;
    for (size_t i = 0; i < step.size(); ++i) {
      step[i] -= x_[i];
      change[i] -= gradient_[i];
    }
    std::swap(x_, trial_x_);
    std::swap(gradient_, trial_gradient_);
    value_ = end.value;
    std::copy(x_.begin(), x_.end(), best_.begin());
    return true;
  }

  const Vector& gradient() const { return gradient_; }
  double value() const { return value_; }
  int evaluations() const { return evaluations_; }

 private:
  double evaluate(const Vector& x, Vector& gradient) {
    ++evaluations_;
    return function_(x, gradient);
  }
  LinePoint probe(double t) {
    for (size_t i = 0; i < x_.size(); ++i) trial_x_[i] = x_[i] + t * (*direction_)[i];
    const double value = evaluate(trial_x_, trial_gradient_);
    trial_ = {t, value, dot(*direction_, trial_gradient_)};
    return trial_;
  }
  bool decreases(const LinePoint& p) const {
    return p.value <= start_.value + kSufficientDecrease * p.t * start_.slope;
  }
  bool is_flat(const LinePoint& p) const { return std::abs(p.slope) <= -kCurvature * start_.slope; }

  LinePoint search(double first_step) {
    LinePoint previous = start_;
    double t = first_step;
    for (int i = 0; i < kLineSteps; ++i) {
      const LinePoint p = probe(t);
      if (!std::isfinite(p.value) || !std::isfinite(p.slope)) {
        t = 0.5 * (previous.t + t);
        continue;
      }
      if (!decreases(p) || (i > 0 && p.value >= previous.value)) return zoom(previous, p);
      if (is_flat(p)) return p;
      if (p.slope >= 0) return zoom(p, previous);
      previous = p;
      t *= 2;
    }
    return previous;
  }
  // Shrinks a bracket whose end `low` is the best point so far.
  LinePoint zoom(LinePoint low, LinePoint high) {
    for (int i = 0; i < kLineSteps; ++i) {
      const LinePoint p = probe(between(low, high));
      if (!decreases(p) || p.value >= low.value) {
        high = p;
      } else {
        if (is_flat(p)) return p;
        if (p.slope * (high.t - low.t) >= 0) high = low;
        low = p;
      }
    }
    return low;
  }

  const SmoothFunction& function_;
  std::span<double> best_;
  Vector x_;
  Vector gradient_;
  double value_ = 0;
  const Vector* direction_ = nullptr;
  Vector trial_x_;
  Vector trial_gradient_;
  LinePoint trial_;
  LinePoint start_;
  int evaluations_ = 0;
};

}  // namespace

LbfgsResult minimise_lbfgs(std::span<double> x, const SmoothFunction& function,
                           const LbfgsOptions& options) {
  require(options.history > 0, "lbfgs: history must be above 0, got ", options.history);
  Minimiser minimiser(x, function);
  History history(options.history);
  LbfgsResult result;
  result.stop = LbfgsStop::iterations;
  while (true) {
    result.largest_gradient = largest(minimiser.gradient());
    if (result.largest_gradient <= options.tolerance) {
      result.stop = LbfgsStop::converged;
      break;
    }
    if (result.iterations >= options.max_iterations) break;
    const bool fresh = history.empty();
    // Without a history the length of the gradient says nothing about the distance.
    const double first_step =
        fresh ? std::min(1.0, 1 / std::sqrt(dot(minimiser.gradient(), minimiser.gradient()))) : 1.0;
    Vector step;
    Vector change;
    if (minimiser.advance(history.direction(minimiser.gradient()), first_step, step, change)) {
      history.add(std::move(step), std::move(change));
      ++result.iterations;
    } else if (fresh) {
      result.stop = LbfgsStop::line_search;
      break;
    } else {
      history.clear();
    }
  }
  result.value = minimiser.value();
  result.evaluations = minimiser.evaluations();
  return result;
}

}  // namespace scgraft
