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

#include "element.h"

namespace customloss {

// Sums beside the first four; their rows follow in this order.  Mirrored by reference.Extra.
enum Extra : unsigned {
  kLogLoss = 1,   // w t (-log p), w (1-t) (-log q); the second is 0 for a softmax
  kSquares = 2,   // w p^2, w t^2, w t p^2
  kDistance = 4,  // w |p - t|
  kFocal = 8,     // w [t q^gamma (-log p) + (1-t) p^gamma (-log q)]; a softmax: the first term
  kHard = 16,     // tp, fp, fn, tn of the decision: p > 1/2, or the first largest of a softmax
};
constexpr unsigned kEveryExtra = 31;
constexpr int kMostRows = 15;  // of kEveryExtra

CUSTOMLOSS_HD constexpr int rows_of(unsigned extra) {
  return 4 + (extra & kLogLoss ? 2 : 0) + (extra & kSquares ? 3 : 0) + (extra & kDistance ? 1 : 0) +
         (extra & kFocal ? 1 : 0) + (extra & kHard ? 4 : 0);
}

static_assert(rows_of(kEveryExtra) == kMostRows, "a sum was added: count its rows here");

// The first row of the extra `one` (a single bit) among the sums of `extra`.
CUSTOMLOSS_HD constexpr int row_of(unsigned extra, unsigned one) {
  return rows_of(extra & (one - 1));
}

namespace {

// log(1 + f) - f for |f| <= 1/3, minimax: error of the logarithm below 5e-9.
CUSTOMLOSS_HD float log_tail(float f) {
  float poly = -0x1.08051ep-3f;
  poly = poly * f + 0x1.1e66e2p-3f;
  poly = poly * f - 0x1.f3116ap-4f;
  poly = poly * f + 0x1.1ed70ep-3f;
  poly = poly * f - 0x1.559dcap-3f;
  poly = poly * f + 0x1.99d028p-3f;
  poly = poly * f - 0x1.fffefp-3f;
  poly = poly * f + 0x1.555506p-2f;
  poly = poly * f - 0.5f;
  return poly * (f * f);
}

CUSTOMLOSS_HD double log_tail(double f) {
  const double s = f / (2.0 + f), s2 = s * s;  // log(1 + f) = 2 atanh(s), |s| <= 1/5
  double poly = 1.0 / 25.0;
  poly = poly * s2 + 1.0 / 23.0;
  poly = poly * s2 + 1.0 / 21.0;
  poly = poly * s2 + 1.0 / 19.0;
  poly = poly * s2 + 1.0 / 17.0;
  poly = poly * s2 + 1.0 / 15.0;
  poly = poly * s2 + 1.0 / 13.0;
  poly = poly * s2 + 1.0 / 11.0;
  poly = poly * s2 + 1.0 / 9.0;
  poly = poly * s2 + 1.0 / 7.0;
  poly = poly * s2 + 1.0 / 5.0;
  poly = poly * s2 + 1.0 / 3.0;
  return s * (2.0 * s2 * poly - f);  // as 2 s - f = -s f
}

// log 2 in two parts: kLog2 has so few digits that n times it is exact, kLog2Rest is the rest.
template <class T>
constexpr T kLog2 = sizeof(T) == 4 ? T(0x1.62e4p-1) : T(0x1.62e42fefa38p-1);
template <class T>
constexpr T kLog2Rest = sizeof(T) == 4 ? T(0x1.7f7d1cp-20) : T(0x1.ef35793c7673p-45);

// log y for y > 0, branch-free.  Relative error below 2e-7; a subnormal float gives about -88.
CUSTOMLOSS_HD float log_of(float y) {
#if defined(__CUDA_ARCH__)
  return logf(y);
#else
  const uint32_t bits = bit_cast<uint32_t>(y);
  const uint32_t shifted = (bits - 0x3f2aaaabu) & 0xff800000u;  // y = 2^n (1 + f), |f| <= 1/3
  const float n = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float f = bit_cast<float>(bits - shifted) - 1.0f;
  return n * kLog2<float> + (n * kLog2Rest<float> + log_tail(f) + f);
#endif
}

CUSTOMLOSS_HD double log_of(double y) {
#if defined(__CUDA_ARCH__)
  return log(y);
#else
  const uint64_t bits = bit_cast<uint64_t>(y);
  const uint64_t shifted = (bits - 0x3fe5555555555555ull) & 0xfff0000000000000ull;
  const double n = static_cast<double>(static_cast<int64_t>(shifted) >> 52);
  const double f = bit_cast<double>(bits - shifted) - 1.0;
  return n * kLog2<double> + (n * kLog2Rest<double> + log_tail(f) + f);
#endif
}

// log(1 + u) for u >= 0, accurate for a small u too; `inverse` is 1 / (1 + u).
template <class T>
CUSTOMLOSS_HD T log1p_of(T u, T inverse) {
  const T y = T(1) + u;
  const T lost = u < T(1) ? u - (y - T(1)) : T(1) - (y - u);
  return log_of(y) + lost * inverse;
}
template <class T>
CUSTOMLOSS_HD T log1p_of(T u) {
  return log1p_of(u, T(1) / (T(1) + u));
}

// log(1 + u) for u in [0, 1], in fewer steps.
template <class T>
CUSTOMLOSS_HD T log1p_of_unit(T u, T inverse) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) return log1p_of(u, inverse);
  float poly = 0x1.56ee0ap-8f;  // log(1 + u) / u, minimax, error below 4e-8
  poly = poly * u - 0x1.e369fp-6f;
  poly = poly * u + 0x1.4069dcp-4f;
  poly = poly * u - 0x1.17d2c2p-3f;
  poly = poly * u + 0x1.874a8p-3f;
  poly = poly * u - 0x1.fcc8c6p-3f;
  poly = poly * u + 0x1.553004p-2f;
  poly = poly * u - 0x1.fffeacp-2f;
  poly = poly * u + 0x1.fffffep-1f;
  return poly * u;
#else
  static_cast<void>(inverse);
  const Flag<T> far(u > T(1) / T(3));  // 1 + u is 2 (1 + f) if far, else 1 + f
  const T f = select(far, u * T(0.5) - T(0.5), u);
  const T log = select(far, kLog2Rest<T>, T(0)) + log_tail(f) + f;
  return select(far, kLog2<T>, T(0)) + log;
#endif
}

// base^exponent for base in [0, 1] and exponent >= 0; 0 at base 0, but 1 if the exponent is 0.
template <class T>
CUSTOMLOSS_HD T power_of(T base, T exponent) {
  const Flag<T> known = nonzero(base), flat = !nonzero(exponent);
  const T log = -log_of(select(known, base, T(1)));
  const T result = exp_minus(exponent * (log < T(0) ? T(0) : log));
  return select(known, result, select(flat, T(1), T(0))) + (base - base);  // NaN stays NaN
}

// A factor of 0 removes even an infinite value.
template <class T>
CUSTOMLOSS_HD T times(T factor, T value) {
  return select(Flag<T>(factor != T(0)), factor * value, T(0));
}

// Probabilities are raised to this floor before a logarithm is taken, as by reference.LOG_FLOOR.
template <class T>
constexpr T kProbabilityFloor = T(1e-30);
template <class T>
CUSTOMLOSS_HD T floored(T probability) {
  constexpr T kFloor = kProbabilityFloor<T>;
  return probability < kFloor ? kFloor : probability;
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

// p^gamma and q^gamma.  A sigmoid's logarithms are at hand and serve for the power.
template <Activation kActivation, class T>
CUSTOMLOSS_HD T hit_power(const Outcome<T>& o, T gamma) {
  if constexpr (kActivation == Activation::kSigmoid) return exp_minus(times(gamma, o.positive));
  return power_of(o.p, gamma);
}
template <Activation kActivation, class T>
CUSTOMLOSS_HD T miss_power(const Outcome<T>& o, T gamma) {
  if constexpr (kActivation == Activation::kSigmoid) return exp_minus(times(gamma, o.negative));
  return power_of(o.q, gamma);
}

// Whether the shares of an element are linear in t and u: passing w t and w u then weighs them.
CUSTOMLOSS_HD constexpr bool linear(unsigned extra) {
  return (extra & (kSquares | kDistance)) == 0;
}

// What an element adds to every sum at weight 1, in the order of the rows of kExtra; u = 1 - t.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD void shares(const Outcome<T>& o, T t, T u, T gamma, T (&to)[rows_of(kExtra)]) {
  constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  to[0] = t * o.p;
  to[1] = u * o.p;
  to[2] = t * o.q;
  to[3] = u * o.q;
  // 0 log 0 counts as 0.
  [[maybe_unused]] const T missed = times(t, o.positive);
  [[maybe_unused]] const T alarm = kSoftmax ? T(0) : times(u, o.negative);
  if constexpr ((kExtra & kLogLoss) != 0) {
    constexpr int kRow = row_of(kExtra, kLogLoss);
    to[kRow] = missed;
    to[kRow + 1] = alarm;
  }
  if constexpr ((kExtra & kSquares) != 0) {
    constexpr int kRow = row_of(kExtra, kSquares);
    to[kRow] = o.p * o.p;
    to[kRow + 1] = t * t;
    to[kRow + 2] = t * (o.p * o.p);
  }
  if constexpr ((kExtra & kDistance) != 0) {
    const T far = to[1] - to[2];  // p - t, without cancellation
    to[row_of(kExtra, kDistance)] = far < T(0) ? -far : far;
  }
  if constexpr ((kExtra & kFocal) != 0) {
    T focal = missed * miss_power<kActivation>(o, gamma);
    if constexpr (!kSoftmax) focal += alarm * hit_power<kActivation>(o, gamma);
    to[row_of(kExtra, kFocal)] = focal;
  }
  if constexpr ((kExtra & kHard) != 0) {
    constexpr int kRow = row_of(kExtra, kHard);
    const T refused = T(1) - o.decided;
    to[kRow] = t * o.decided;
    to[kRow + 1] = u * o.decided;
    to[kRow + 2] = t * refused;
    to[kRow + 3] = u * refused;
  }
}
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD void shares(const Outcome<T>& o, T t, T gamma, T (&to)[rows_of(kExtra)]) {
  shares<kActivation, kExtra>(o, t, T(1) - t, gamma, to);
}

// dL/dp, -dL/d(log p) and -dL/d(log q) of an element, at weight 1.
template <class T>
struct Slopes {
  T u, h, k;
  // The focal terms of a sigmoid that have 1 / q in h and 1 / p in k are left out there.  These are
  // the same terms in q h and p k, where the divisions cancel.
  T qh, pk;

  CUSTOMLOSS_HD explicit Slopes(T u) : u(u), h(0), k(0), qh(0), pk(0) {}
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
// of 1 - t (or q), each with the row of the distance added where p is above t and subtracted where
// it is below: {first + d, second + d, first - d, second - d}.  The terms may have all but their
// last digits in common, so they are put together in double, before anything is rounded.
template <class At>
CUSTOMLOSS_HD void combine_grads(Wrt wrt, unsigned extra, At at, double (&to)[4]) {
  const bool by_input = wrt == Wrt::kInput;
  const double first = at(0) - at(by_input ? 2 : 1);
  const double second = at(by_input ? 1 : 2) - at(3);
  double distance = (extra & kDistance) != 0 ? at(row_of(extra, kDistance)) : 0.0;
  if (!by_input) distance = -distance;  // |p - t| falls where t rises towards p
  to[0] = first + distance;
  to[1] = second + distance;
  to[2] = first - distance;
  to[3] = second - distance;
}

// x g[0] + y g[1] where p is above t, x g[2] + y g[3] where it is below, and their mean at p = t.
template <unsigned kExtra, class T>
CUSTOMLOSS_HD T beside(const Outcome<T>& o, T t, T x, T y, const T (&g)[rows_of(kExtra)]) {
  const T above = x * g[0] + y * g[1];
  if constexpr ((kExtra & kDistance) == 0) {
    return above;
  } else {
    const T below = x * g[2] + y * g[3], far = (T(1) - t) * o.p - t * o.q;
    return far > T(0) ? above : far < T(0) ? below : T(0.5) * (above + below);
  }
}

// `g`: combine_grads(), then the gradient by the further sums of the element's group, in their
// order.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD Slopes<T> slopes(const Outcome<T>& o, T t, T gamma, const T (&g)[rows_of(kExtra)]) {
  constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  const T u = T(1) - t;
  Slopes<T> result(beside<kExtra>(o, t, t, u, g));
  if constexpr ((kExtra & kSquares) != 0) {
    constexpr int kRow = row_of(kExtra, kSquares);
    result.u += T(2) * o.p * (g[kRow] + t * g[kRow + 2]);
  }
  if constexpr ((kExtra & kLogLoss) != 0) {
    constexpr int kRow = row_of(kExtra, kLogLoss);
    result.h = g[kRow] * t;
    if constexpr (!kSoftmax) result.k = g[kRow + 1] * u;
  }
  if constexpr ((kExtra & kFocal) != 0) {
    const T by = g[row_of(kExtra, kFocal)];
    // p (-log p) and q (-log q) go to 0 where the logarithm grows without bound.
    const T missed = times(t * o.p, o.positive);
    const T power = miss_power<kActivation>(o, gamma);
    result.h += by * (t * power);
    if constexpr (kActivation == Activation::kSigmoid) {
      result.qh = by * (gamma * missed * power);
    } else {
      result.h += by * (gamma * missed * (power / floored(o.q)));
    }
    if constexpr (!kSoftmax) {
      const T alarm = times(u * o.q, o.negative);
      const T other = hit_power<kActivation>(o, gamma);
      result.k += by * (u * other);
      if constexpr (kActivation == Activation::kSigmoid) {
        result.pk = by * (gamma * alarm * other);
      } else {
        result.k += by * (gamma * alarm * (other / floored(o.p)));
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
    return kLogs ? s.u - s.h / floored(o.p) + s.k / floored(o.q) : s.u;
  } else {
    T dx = (o.p * o.q) * s.u;
    if constexpr (kLogs) dx += o.p * s.k - o.q * s.h;
    if constexpr ((kExtra & kFocal) != 0) dx += s.pk - s.qh;
    return scale * dx;
  }
}

// dL/dt of an element, at weight 1 and before smoothing; `g` as for slopes().
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD T target_gradient(const Outcome<T>& o, T t, T gamma, const T (&g)[rows_of(kExtra)]) {
  constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  T dt = beside<kExtra>(o, t, o.p, o.q, g);
  if constexpr ((kExtra & kLogLoss) != 0) {
    constexpr int kRow = row_of(kExtra, kLogLoss);
    dt += times(g[kRow], o.positive);
    if constexpr (!kSoftmax) dt -= times(g[kRow + 1], o.negative);
  }
  if constexpr ((kExtra & kSquares) != 0) {
    constexpr int kRow = row_of(kExtra, kSquares);
    dt += T(2) * t * g[kRow + 1] + o.p * o.p * g[kRow + 2];
  }
  if constexpr ((kExtra & kFocal) != 0) {
    T by = o.positive * miss_power<kActivation>(o, gamma);
    if constexpr (!kSoftmax) by -= o.negative * hit_power<kActivation>(o, gamma);
    dt += times(g[row_of(kExtra, kFocal)], by);
  }
  if constexpr ((kExtra & kHard) != 0) {
    constexpr int kRow = row_of(kExtra, kHard);
    dt += o.decided * (g[kRow] - g[kRow + 1]) + (T(1) - o.decided) * (g[kRow + 2] - g[kRow + 3]);
  }
  return dt;
}

// dL/dw of an element: the sum of its shares times the gradient by the sums, which is `g`.
template <Activation kActivation, unsigned kExtra, class T>
CUSTOMLOSS_HD T weight_gradient(const Outcome<T>& o, T t, T gamma, const T (&g)[rows_of(kExtra)]) {
  T share[rows_of(kExtra)];
  shares<kActivation, kExtra>(o, t, gamma, share);
  T dw = T(0);
  for (int row = 0; row < rows_of(kExtra); ++row) dw += times(g[row], share[row]);
  return dw;
}

}  // namespace
}  // namespace customloss
