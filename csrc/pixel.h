// The maths beyond element.h: the softmax of a pixel, class numbers as targets, and the sums beside
// tp, fp, fn, tn.  A pixel is one place, with a logit for every class.
//
//   softmax       p_c = e_c / (1 + rest), e_c = exp(z_c - max z), rest = the sum of e without one
//                 largest; q_c = rest / (1 + rest) for a largest class and
//                 (1 + rest - e_c) / (1 + rest) for any other
//   class number  t_c = [target = c];  smoothed  t = (1-e) t + e/K
//   backward      with u = dL/dp, h = -dL/d(log p), k = -dL/d(log q), all of them times w
//     sigmoid     dL/dx = p q u - q h + p k
//     softmax     dL/dx_k = p_k (u_k - sum p_c u_c) + p_k sum over c != k of h_c - q_k h_k
//                 the u of a largest class (the shift) is first subtracted from every u: the result
//                 is the same, and nothing cancels next to p = 1
//
// Compiled for the host and for the device.
#pragma once

#include <utility>

#include "element.h"
#include "logarithm.h"

namespace customloss {

// What becomes of a class number that is neither a class nor ignored, and of an element whose
// target is NaN.  Mirrored by customloss/_spec/words.py.
enum class OutOfRange : int64_t { kRaise = 0, kIgnore = 1, kLast = kIgnore };
enum class NanTargets : int64_t { kPropagate = 0, kIgnore = 1, kLast = kIgnore };

// The values of targets that do not count.
constexpr int kMostIgnored = 8;
struct Ignored {
  int count = 0;
  int64_t values[kMostIgnored] = {};  // beyond `count`, the first value again

  // Most calls have one value, so that one is compared without a loop.
  CUSTOMLOSS_HD bool has(int64_t label) const {
    if (count == 0) return false;
    return label == values[0] || (count > 1 && among(label));
  }
  template <class T>
  CUSTOMLOSS_HD bool holds(T target) const {
    bool found = false;
    for (int k = 0; k < count; ++k) found |= target == static_cast<T>(values[k]);
    return found;
  }

 private:
  CUSTOMLOSS_HD bool among(int64_t label) const {
    bool found = false;
    for (int k = 1; k < kMostIgnored; ++k) found |= label == values[k];
    return found;
  }
};

// Sums beside the first four; their rows follow in this order.  Mirrored by reference.Extra.
enum Extra : unsigned {
  kLogLoss = 1,   // w t (-log p), w (1-t) (-log q); the second is 0 for a softmax
  kSquares = 2,   // w p^2, w t^2, w t p^2
  kDistance = 4,  // w min(p, t), w max(p - t, 0), w max(t - p, 0)
  kFocal = 8,     // w t m^gamma (-log p), w (1-t) m^gamma (-log q), m = t q + (1-t) p; see Bases
  kHard = 16,     // tp, fp, fn, tn of the decision, p > 1/2 or the first largest of a softmax, with
                  // t before smoothing
  kSupport = 32,  // w t, with t before smoothing
};
constexpr unsigned kEveryExtra = 2 * kSupport - 1;
// The last rows, on which the input has no influence.
constexpr unsigned kFixedExtras = kHard | kSupport;

CUSTOMLOSS_HD constexpr int rows_of(unsigned extra) {
  return 4 + (extra & kLogLoss ? 2 : 0) + (extra & kSquares ? 3 : 0) + (extra & kDistance ? 3 : 0) +
         (extra & kFocal ? 2 : 0) + (extra & kHard ? 4 : 0) + (extra & kSupport ? 1 : 0);
}

constexpr int kMostRows = rows_of(kEveryExtra);

constexpr bool every_extra_has_rows() {
  for (unsigned one = 1; one <= kEveryExtra; one *= 2) {
    if (rows_of(one) == rows_of(0)) return false;
  }
  return true;
}
static_assert(every_extra_has_rows(), "a sum was added: count its rows in rows_of()");
static_assert(rows_of(~0u) == kMostRows, "a sum was added: it is missing in kEveryExtra");

// The first row of the extra `one` (a single bit) among the sums of `extra`.
CUSTOMLOSS_HD constexpr int row_of(unsigned extra, unsigned one) {
  return rows_of(extra & (one - 1));
}

// How targets are smoothed: t becomes t (on - off) + off, and that of a log-loss likewise.
template <class T>
struct Smoothing {
  T on, off, log_on, log_off;
};

template <class To, class From>
CUSTOMLOSS_HD Smoothing<To> rounded(const Smoothing<From>& from) {
  return {static_cast<To>(from.on), static_cast<To>(from.off), static_cast<To>(from.log_on),
          static_cast<To>(from.log_off)};
}

// The exponent of a focal term, and what is raised to it.
template <class T>
struct Focal {
  T gamma;
  bool split;  // see Bases; only loops of kEveryExtra know it
};

namespace {

// Calls body(row) for every row. It is written out, because the compiler keeps a loop of more than
// 16 rounds: then the rows stay in memory, and a loop over pixels around it takes one at a time.
template <int kRows, class Body>
CUSTOMLOSS_HD void for_each_row(const Body& body) {
  [&]<int... kRow>(std::integer_sequence<int, kRow...>) {
    (body(kRow), ...);
  }(std::make_integer_sequence<int, kRows>());
}

// A factor of 0 removes even an infinite value.
template <class T>
CUSTOMLOSS_HD T times(T factor, T value) {
  return select(Flag<T>(factor != T(0)), factor * value, T(0));
}

// Probabilities are raised to this floor before a logarithm is taken, as by
// reference.PROBABILITY_FLOOR.
template <class T>
constexpr T kProbabilityFloor = T(1e-30);
template <class T>
CUSTOMLOSS_HD T floored(T probability) {
  constexpr T kFloor = kProbabilityFloor<T>;
  return probability < kFloor ? kFloor : probability;
}

// The derivative of factor * log(floored(probability)): 0 below the floor, where it is constant.
template <class T>
CUSTOMLOSS_HD T log_slope(T factor, T probability) {
  const Flag<T> below(probability < kProbabilityFloor<T>);
  return select(below, T(0), factor / probability);
}

// One element: p, q = 1 - p, their negative logarithms where asked for, and the decision.
template <class T>
struct Outcome {
  T p, q;
  T positive, negative;  // -log p, -log q
  T decided;             // 1 or 0

  CUSTOMLOSS_HD Outcome(T p, T q) : p(p), q(q), positive(0), negative(0), decided(0) {}
};

// An element of a sigmoid or of probabilities.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD Outcome<T> outcome(T x, T scale, T offset) {
  static_assert(kActivation != Activation::kSoftmax, "a softmax needs its pixel");
  constexpr bool kLogs = (kExtra & (kLogLoss | kFocal)) != 0;
  if constexpr (kActivation == Activation::kNone) {
    Outcome<T> result(x, T(1) - x);
    if constexpr (kLogs) {
      result.positive = (result.p - result.p) - log_of(floored(result.p));  // NaN stays NaN
      result.negative = (result.q - result.q) - log_of(floored(result.q));
    }
    result.decided = result.p > T(0.5) ? T(1) : T(0);
    return result;
  } else {
    const T z = scale * (x - offset);
    const bool below = z < T(0);
    const T size = below ? -z : z;
    const T e = exp_minus(size);
    const T big = reciprocal(T(1) + e);
    const T small = e * big;
    Outcome<T> result(below ? small : big, below ? big : small);
    if constexpr (kLogs) {
      const T log = log1p_of_unit(e, big);
      result.positive = below ? log + size : log;
      result.negative = below ? log : log + size;
    }
    result.decided = result.p > T(0.5) ? T(1) : T(0);
    return result;
  }
}

// A target as the sums take it.
template <class T>
struct Target {
  T t, u;           // smoothed, and 1 - t
  T log_t, log_u;   // smoothed for the log-losses, and 1 - log_t
  T given, absent;  // not smoothed, and 1 - given

  // The same, times a weight.
  CUSTOMLOSS_HD Target times(T w) const {
    return {w * t, w * u, w * log_t, w * log_u, w * given, w * absent};
  }
};

template <class T>
CUSTOMLOSS_HD Target<T> soft_target(const Smoothing<T>& by, T given) {
  const T t = given * (by.on - by.off) + by.off;
  const T log_t = given * (by.log_on - by.log_off) + by.log_off;
  return {t, T(1) - t, log_t, T(1) - log_t, given, T(1) - given};
}
template <class T>
CUSTOMLOSS_HD Target<T> hard_target(const Smoothing<T>& by, bool given) {
  const T t = given ? by.on : by.off, log_t = given ? by.log_on : by.log_off;
  const T one = given ? T(1) : T(0);
  return {t, T(1) - t, log_t, T(1) - log_t, one, T(1) - one};
}

// What is raised to gamma before -log p (`one`) and before -log q (`other`), and the slopes of
// these by p.  Of a sigmoid or of probabilities it is m = t q + u p for both.  Of a softmax, and
// with `split`, it is q, and p.
template <class T>
struct Bases {
  T one, other, by_one, by_other;
};

template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD Bases<T> bases(const Outcome<T>& o, const Target<T>& y, const Focal<T>& focal) {
  if constexpr (kActivation == Activation::kSoftmax) return {o.q, o.p, T(-1), T(1)};
  const T m = y.t * o.q + y.u * o.p, slope = y.u - y.t;
  if constexpr (kExtra != kEveryExtra) return {m, m, slope, slope};
  const Flag<T> split(focal.split);  // with ?: the loop over pixels would not vectorise
  return {select(split, o.q, m), select(split, o.p, m), select(split, T(-1), slope),
          select(split, T(1), slope)};
}

// The power of `base.other`, given that of `base.one`: outside of kEveryExtra they are the same.
template <unsigned kExtra, class T>
CUSTOMLOSS_HD T other_power(const Bases<T>& base, T one, T gamma) {
  if constexpr (kExtra != kEveryExtra) return one;
  return power_of(base.other, gamma);
}

// Whether the shares of an element are linear in its target: a weighted target then weighs them.
CUSTOMLOSS_HD constexpr bool linear(unsigned extra) {
  return (extra & (kSquares | kDistance | kFocal)) == 0;
}

// p - t, which keeps its digits where p is close to a hard target. It is a difference and not one
// of products, which the compiler may fuse: then it would not be 0 at p = t.
template <class T>
CUSTOMLOSS_HD T excess_of(const Outcome<T>& o, const Target<T>& y) {
  return o.p < T(0.5) ? o.p - y.t : y.u - o.q;
}

// What an element adds to every sum at weight 1, in the order of the rows of kExtra.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD void shares(const Outcome<T>& o, const Target<T>& y, const Focal<T>& focal,
                          T (&to)[rows_of(kExtra)]) {
  constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  const T t = y.t, u = y.u;
  to[0] = t * o.p;
  to[1] = u * o.p;
  to[2] = t * o.q;
  to[3] = u * o.q;
  // 0 log 0 counts as 0.
  if constexpr ((kExtra & kLogLoss) != 0) {
    constexpr int kRow = row_of(kExtra, kLogLoss);
    to[kRow] = times(y.log_t, o.positive);
    to[kRow + 1] = kSoftmax ? T(0) : times(y.log_u, o.negative);
  }
  if constexpr ((kExtra & kSquares) != 0) {
    constexpr int kRow = row_of(kExtra, kSquares);
    to[kRow] = o.p * o.p;
    to[kRow + 1] = t * t;
    to[kRow + 2] = t * (o.p * o.p);
  }
  if constexpr ((kExtra & kDistance) != 0) {
    constexpr int kRow = row_of(kExtra, kDistance);
    const T excess = excess_of(o, y);
    // A NaN, of p or of t, is one in each of them.
    to[kRow] = excess > T(0) ? t : o.p + (t - t);
    to[kRow + 1] = excess < T(0) ? T(0) : excess;
    to[kRow + 2] = to[kRow + 1] - excess;
  }
  if constexpr ((kExtra & kFocal) != 0) {
    constexpr int kRow = row_of(kExtra, kFocal);
    const Bases<T> base = bases<kActivation, kExtra>(o, y, focal);
    const T one = power_of(base.one, focal.gamma);
    to[kRow] = times(t, o.positive) * one;
    to[kRow + 1] = T(0);
    if constexpr (!kSoftmax) {
      to[kRow + 1] = times(u, o.negative) * other_power<kExtra>(base, one, focal.gamma);
    }
  }
  if constexpr ((kExtra & kHard) != 0) {
    constexpr int kRow = row_of(kExtra, kHard);
    const T refused = T(1) - o.decided;
    to[kRow] = y.given * o.decided;
    to[kRow + 1] = y.absent * o.decided;
    to[kRow + 2] = y.given * refused;
    to[kRow + 3] = y.absent * refused;
  }
  if constexpr ((kExtra & kSupport) != 0) to[row_of(kExtra, kSupport)] = y.given;
}

// dL/dp, -dL/d(log p) and -dL/d(log q) of an element, at weight 1.  Of probabilities, the focal
// terms that come from p^gamma and q^gamma are part of u.
template <class T>
struct Slopes {
  T u, h, k;
  // dL/dx by the focal bases of a sigmoid.  In u it would be divided by p q, which may be 0.
  T by_bases;

  CUSTOMLOSS_HD explicit Slopes(T u) : u(u), h(0), k(0), by_bases(0) {}
};

// Whether the loss depends on a sum of a group, given the gradient by each.  If not, the gradients
// of its elements are 0, whatever they hold: products with these zeros would be NaN where they are.
template <int kRows, class T>
CUSTOMLOSS_HD bool has_influence(const T (&g)[kRows]) {
  bool any = false;
  for (int row = 0; row < kRows; ++row) any = any || g[row] != T(0);
  return any;
}

// The first four rows of `g` as slopes() and target_gradient() take them, where at(row) is the
// gradient by a sum of `extra`.  What counts is the factor of t (or of p, by the target) and that
// of 1 - t (or q), each with the slope of the distance where p is above t, and where it is below:
// {first + above, second + above, first + below, second + below}.  The terms may have all but their
// last digits in common, so they are put together in double, before anything is rounded.
template <class At>
CUSTOMLOSS_HD void combine_grads(Wrt wrt, unsigned extra, At at, double (&to)[4]) {
  const bool by_input = wrt == Wrt::kInput;
  const double first = at(0) - at(by_input ? 2 : 1);
  const double second = at(by_input ? 1 : 2) - at(3);
  double above = 0.0, below = 0.0;
  if ((extra & kDistance) != 0) {
    // The smaller of p and t is in common; a distance grows with the larger one.
    const int row = row_of(extra, kDistance);
    above = by_input ? at(row + 1) : at(row) - at(row + 1);
    below = by_input ? at(row) - at(row + 2) : at(row + 2);
  }
  to[0] = first + above;
  to[1] = second + above;
  to[2] = first + below;
  to[3] = second + below;
}

// x g[0] + y g[1] where p is above t, x g[2] + y g[3] where it is below, and their mean at p = t.
template <unsigned kExtra, class T>
CUSTOMLOSS_HD T by_side(const Outcome<T>& o, const Target<T>& target, T x, T y,
                        const T (&g)[rows_of(kExtra)]) {
  const T above = x * g[0] + y * g[1];
  if constexpr ((kExtra & kDistance) == 0) {
    return above;
  } else {
    const T below = x * g[2] + y * g[3], excess = excess_of(o, target);
    return excess > T(0) ? above : excess < T(0) ? below : T(0.5) * (above + below);
  }
}

// `g`: combine_grads(), then the gradient by the further sums of the element's group, in their
// order.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD Slopes<T> slopes(const Outcome<T>& o, const Target<T>& y, const Focal<T>& focal,
                               const T (&g)[rows_of(kExtra)]) {
  constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  Slopes<T> result(by_side<kExtra>(o, y, y.t, y.u, g));
  if constexpr ((kExtra & kSquares) != 0) {
    constexpr int kRow = row_of(kExtra, kSquares);
    result.u += T(2) * o.p * (g[kRow] + y.t * g[kRow + 2]);
  }
  if constexpr ((kExtra & kLogLoss) != 0) {
    constexpr int kRow = row_of(kExtra, kLogLoss);
    result.h = g[kRow] * y.log_t;
    if constexpr (!kSoftmax) result.k = g[kRow + 1] * y.log_u;
  }
  if constexpr ((kExtra & kFocal) != 0) {
    constexpr int kRow = row_of(kExtra, kFocal);
    const Bases<T> base = bases<kActivation, kExtra>(o, y, focal);
    const T one = power_of(base.one, focal.gamma);
    result.h += g[kRow] * (y.t * one);
    // The derivative of base^gamma, without the slope of the base.
    const T steep = focal.gamma * (one / floored(base.one));
    if constexpr (kSoftmax) {
      result.h += g[kRow] * (steep * times(y.t * o.p, o.positive));
    } else {
      const T other = other_power<kExtra>(base, one, focal.gamma);
      const T other_steep = focal.gamma * (other / floored(base.other));
      result.k += g[kRow + 1] * (y.u * other);
      if constexpr (kActivation == Activation::kSigmoid) {
        // p (-log p) and q (-log q) go to 0 where the logarithm grows without bound.
        const T hits = g[kRow] * times(y.t * o.p, o.positive);
        const T misses = g[kRow + 1] * times(y.u * o.q, o.negative);
        result.by_bases = steep * base.by_one * (o.q * hits);
        result.by_bases += other_steep * base.by_other * (o.p * misses);
      } else {
        result.u += steep * base.by_one * (g[kRow] * times(y.t, o.positive));
        result.u += other_steep * base.by_other * (g[kRow + 1] * times(y.u, o.negative));
      }
    }
  }
  return result;
}

// dL/dx of an element of a sigmoid or of probabilities, at weight 1.
template <Activation kActivation, unsigned kExtra = kEveryExtra, class T>
CUSTOMLOSS_HD T input_gradient(const Outcome<T>& o, const Slopes<T>& s, T scale) {
  constexpr bool kLogs = (kExtra & (kLogLoss | kFocal)) != 0;
  if constexpr (kActivation == Activation::kNone) {
    return kLogs ? s.u - log_slope(s.h, o.p) + log_slope(s.k, o.q) : s.u;
  } else {
    T dx = (o.p * o.q) * s.u;
    if constexpr (kLogs) dx += o.p * s.k - o.q * s.h;
    if constexpr ((kExtra & kFocal) != 0) dx += s.by_bases;
    return scale * dx;
  }
}

// The part of dL/dt that comes from the focal sums.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD T focal_by_target(const Outcome<T>& o, const Target<T>& y, const Focal<T>& focal,
                                const T (&g)[rows_of(kExtra)]) {
  constexpr int kRow = row_of(kExtra, kFocal);
  const Bases<T> base = bases<kActivation, kExtra>(o, y, focal);
  const T one = power_of(base.one, focal.gamma);
  T dt = times(g[kRow], times(one, o.positive));
  if constexpr (kActivation != Activation::kSoftmax) {
    const T other = other_power<kExtra>(base, one, focal.gamma);
    dt -= times(g[kRow + 1], times(other, o.negative));
    T lost = times(g[kRow], times(y.t, o.positive));
    lost += times(g[kRow + 1], times(y.u, o.negative));
    const T steep = focal.gamma * (one / floored(base.one)) * (o.q - o.p);
    dt += select(Flag<T>(focal.split), T(0), steep * lost);
  }
  return dt;
}

// dL/dt of an element, at weight 1; `g` as for slopes().
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD T target_gradient(const Outcome<T>& o, const Target<T>& y,
                                const Smoothing<T>& smoothing, const Focal<T>& focal,
                                const T (&g)[rows_of(kExtra)]) {
  constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  T dt = by_side<kExtra>(o, y, o.p, o.q, g);
  if constexpr ((kExtra & kSquares) != 0) {
    constexpr int kRow = row_of(kExtra, kSquares);
    dt += T(2) * y.t * g[kRow + 1] + o.p * o.p * g[kRow + 2];
  }
  if constexpr ((kExtra & kFocal) != 0) dt += focal_by_target<kActivation, kExtra>(o, y, focal, g);
  dt *= smoothing.on - smoothing.off;
  if constexpr ((kExtra & kLogLoss) != 0) {
    constexpr int kRow = row_of(kExtra, kLogLoss);
    T by_log = times(g[kRow], o.positive);
    if constexpr (!kSoftmax) by_log -= times(g[kRow + 1], o.negative);
    dt += (smoothing.log_on - smoothing.log_off) * by_log;
  }
  if constexpr ((kExtra & kHard) != 0) {
    constexpr int kRow = row_of(kExtra, kHard);
    dt += o.decided * (g[kRow] - g[kRow + 1]) + (T(1) - o.decided) * (g[kRow + 2] - g[kRow + 3]);
  }
  if constexpr ((kExtra & kSupport) != 0) dt += g[row_of(kExtra, kSupport)];
  return dt;
}

// dL/dw of an element: the sum of its shares times the gradient by the sums, which is `g`.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD T weight_gradient(const Outcome<T>& o, const Target<T>& y, const Focal<T>& focal,
                                const T (&g)[rows_of(kExtra)]) {
  T share[rows_of(kExtra)];
  shares<kActivation, kExtra>(o, y, focal, share);
  T dw = T(0);
  for_each_row<rows_of(kExtra)>([&](int row) { dw += times(g[row], share[row]); });
  return dw;
}

}  // namespace
}  // namespace customloss
