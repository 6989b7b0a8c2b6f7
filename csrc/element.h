// The maths of one element, shared by every kernel: its probability, its share of the soft
// confusion sums, and the derivative of that share.  Softmax, class numbers and further sums are in
// pixel.h.
//
//   p = activation(x)   q = 1 - p, evaluated without cancellation
//   tp = w t p   fp = w (1-t) p   fn = w t q   tn = w (1-t) q
//
// Compiled for the host and for the device.  Everything sits in an anonymous namespace
// because the CPU build compiles it once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define CUSTOMLOSS_HD __host__ __device__ __forceinline__
#else
#define CUSTOMLOSS_HD inline __attribute__((always_inline))
#endif

namespace customloss {

// What turns `input` into a probability.  Mirrored by customloss/_spec/words.py.
enum class Activation : int64_t { kSigmoid = 0, kNone = 1, kSoftmax = 2, kLast = kSoftmax };

// Which operand a gradient is taken with respect to.  Mirrored by customloss/_spec/words.py.
enum class Wrt : int64_t { kInput = 0, kTarget = 1, kWeight = 2, kLast = kWeight };

namespace {

template <class To, class From>
CUSTOMLOSS_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// e^-a for a >= 0, branch-free so that loops over it vectorise.  Relative error below 2e-7 on the
// host, and below 2e-7 + 8e-8 a on the device, where the product with log2(e) is rounded.  Exactly
// 0 once e^-a would be subnormal; NaN stays NaN.
CUSTOMLOSS_HD float exp_minus(float a) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a * -1.44269504088896341f));
  return result;
#else
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float clamped = 88.0f < a ? 88.0f : a;  // at 88 the exponent field and the result are 0
  const float rounded = clamped * -1.44269504f + kRound;
  const float n = rounded - kRound;
  const float r = (-n * 0x1.62e4p-1f - clamped) - n * 0x1.7f7d1cp-20f;  // Cody-Waite
  float poly = 0x1.6a23dp-10f;  // e^r = 1 + r + r^2 q(r), minimax, error below 4e-9
  poly = poly * r + 0x1.123a2p-7f;
  poly = poly * r + 0x1.5558f2p-5f;
  poly = poly * r + 0x1.555492p-3f;
  poly = poly * r + 0x1.fffffcp-2f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  const uint32_t exponent = (bit_cast<uint32_t>(rounded) << 23) + 0x3f800000u;
  return poly * bit_cast<float>(exponent);
#endif
}

// e^r = 1 + r + r^2 q(r), |r| <= log(2)/2: coefficient k of q, minimax, error below 1.1e-17.
CUSTOMLOSS_HD constexpr double exp_coefficient(int k) {
  constexpr double q[] = {
      0x1.000000000000ap-1,  0x1.55555555554fap-3,  0x1.555555555086dp-5,  0x1.1111111127c2fp-7,
      0x1.6c16c1842db96p-10, 0x1.a01a012a45996p-13, 0x1.a0199a01e6458p-16, 0x1.71df256a68e1dp-19,
      0x1.28ad7cfb28ca6p-22, 0x1.ad7f63049951cp-26,
  };
  return q[k];
}

CUSTOMLOSS_HD double exp_minus(double a) {
  constexpr double kRound = 0x1.8p52;
  const double clamped = 709.0 < a ? 709.0 : a;  // at 709 the exponent field and the result are 0
  const double rounded = clamped * -1.4426950408889634 + kRound;
  const double n = rounded - kRound;
  const double r = (-n * 0x1.62e42fefa38p-1 - clamped) - n * 0x1.ef35793c7673p-45;
  // the even and the odd powers apart: two short chains instead of a long one, which would wait
  const double square = r * r;
  double even = exp_coefficient(8), odd = exp_coefficient(9);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int k = 6; k >= 0; k -= 2) {
    even = even * square + exp_coefficient(k);
    odd = odd * square + exp_coefficient(k + 1);
  }
  double poly = odd * r + even;
  poly = poly * r + 1.0;
  poly = poly * r + 1.0;
  const uint64_t exponent = (bit_cast<uint64_t>(rounded) << 52) + 0x3ff0000000000000ull;
  return poly * bit_cast<double>(exponent);
}

// 1 / a for a in [1, 2].
CUSTOMLOSS_HD float reciprocal(float a) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.0f / a;
#endif
}
CUSTOMLOSS_HD double reciprocal(double a) { return 1.0 / a; }

template <class T>
CUSTOMLOSS_HD T magnitude(T a) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4) return fabsf(a);  // free: the next instruction takes |a| as it is
#endif
  return a < T(0) ? -a : a;
}

// p, q = 1 - p, and the slope dp/dx.
template <class T>
struct Probability {
  T p, q, slope;
};

// p = sigmoid(z) with z = scale (x - offset), or p = x.  The q of a sigmoid is computed as
// sigmoid(-z), never as 1 - p, which is 0 in float32 for z >= 16.7.
template <Activation kActivation, class T>
CUSTOMLOSS_HD Probability<T> probability(T x, T scale, T offset) {
  if constexpr (kActivation == Activation::kNone) {
    return {x, T(1) - x, T(1)};
  } else {
    const T z = scale * (x - offset);
    const T e = exp_minus(magnitude(z));
    const T big = reciprocal(T(1) + e);
    const T small = e * big;
    const bool negative = z < T(0);
    return {negative ? small : big, negative ? big : small, scale * (small * big)};
  }
}

// One element's share of the four sums.
template <class T>
struct Share {
  T tp, fp, fn, tn;
};

// A hard target or a condition, in the form that the compiler handles best: a bool on the device;
// all bits or none on the host, where loops over comparisons often do not vectorise.
#if defined(__CUDA_ARCH__)
template <class T>
using Flag = bool;
#else
template <class T>
struct Flag {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits bits;

  CUSTOMLOSS_HD Flag(bool set) : bits(Bits(0) - Bits(set)) {}
  CUSTOMLOSS_HD explicit Flag(Bits bits) : bits(bits) {}
  CUSTOMLOSS_HD Flag operator!() const { return Flag(Bits(~bits)); }
};
#endif

template <class T>
CUSTOMLOSS_HD T select(Flag<T> flag, T yes, T no) {
#if defined(__CUDA_ARCH__)
  return flag ? yes : no;
#else
  using Bits = typename Flag<T>::Bits;
  return bit_cast<T>(
      static_cast<Bits>((bit_cast<Bits>(yes) & flag.bits) | (bit_cast<Bits>(no) & ~flag.bits)));
#endif
}

template <class T>
CUSTOMLOSS_HD Flag<T> nonzero(T value) {
#if defined(__CUDA_ARCH__)
  return value != T(0);
#else
  using Bits = typename Flag<T>::Bits;
  const Bits magnitude = static_cast<Bits>(bit_cast<Bits>(value) << 1);
  const Bits top = static_cast<Bits>(magnitude | (Bits(0) - magnitude)) >> (8 * sizeof(T) - 1);
  return Flag<T>(static_cast<Bits>(Bits(0) - top));
#endif
}

// Weight 0 removes the element, whatever it holds: a NaN there must not leak.
template <bool kWeighted, class T>
CUSTOMLOSS_HD T weigh(T value, T w) {
  if constexpr (kWeighted) {
    return select(nonzero(w), w * value, T(0));
  } else {
    return value;
  }
}

// For the gradient by the weight: weight 0 removes only an infinity or a NaN.
template <bool kWeighted, class T>
CUSTOMLOSS_HD T finite_or_removed(T value, T w) {
  if constexpr (kWeighted) {
    const T masked = select(nonzero(w), value, T(0));
    return value - value == T(0) ? value : masked;
  } else {
    return value;
  }
}

// A hard target selects, which is cheaper than a product and gives the same value.
template <bool kWeighted, class T>
CUSTOMLOSS_HD Share<T> share(T p, T q, Flag<T> t, T w) {
  const T wp = weigh<kWeighted>(p, w);
  const T wq = weigh<kWeighted>(q, w);
  return {select(t, wp, T(0)), select(t, T(0), wp), select(t, wq, T(0)), select(t, T(0), wq)};
}

template <bool kWeighted, class T>
CUSTOMLOSS_HD Share<T> share(T p, T q, T t, T w) {
  const T u = T(1) - t;
  return {weigh<kWeighted>(t * p, w), weigh<kWeighted>(u * p, w), weigh<kWeighted>(t * q, w),
          weigh<kWeighted>(u * q, w)};
}

// The gradient of one group's loss by its four sums, arranged for one operand:
//   input    w dp/dx [ t a + (1-t) b ]        a = g_tp - g_fn   b = g_fp - g_tn
//   target   w [ p a + q b ]                  a = g_tp - g_fp   b = g_fn - g_tn
//   weight   t (p a + q b) + (1-t) (p c + q d), or 0 if that is not finite and w = 0
//            a = g_tp   b = g_fn   c = g_fp   d = g_tn
template <class T>
struct Coefficient {
  T a, b, c, d;

  // Whether the loss depends on the sums of the group.  If not, every gradient is 0, whatever the
  // elements hold: a product with these zeros would be NaN where an element is.
  CUSTOMLOSS_HD bool has_influence() const {
    return a != T(0) || b != T(0) || c != T(0) || d != T(0);
  }
};

template <class T>
CUSTOMLOSS_HD Coefficient<T> coefficient(Wrt wrt, double tp, double fp, double fn, double tn) {
  switch (wrt) {
    case Wrt::kInput: return {T(tp - fn), T(fp - tn), T(0), T(0)};
    case Wrt::kTarget: return {T(tp - fp), T(fn - tn), T(0), T(0)};
    default: return {T(tp), T(fn), T(fp), T(tn)};
  }
}

template <Wrt kWrt, bool kWeighted, class T>
CUSTOMLOSS_HD T gradient(const Probability<T>& prob, Flag<T> t, T w, const Coefficient<T>& g) {
  if constexpr (kWrt == Wrt::kInput) {
    return weigh<kWeighted>(prob.slope * select(t, g.a, g.b), w);
  } else if constexpr (kWrt == Wrt::kTarget) {
    return weigh<kWeighted>(prob.p * g.a + prob.q * g.b, w);
  } else {
    return finite_or_removed<kWeighted>(
        select(t, prob.p * g.a + prob.q * g.b, prob.p * g.c + prob.q * g.d), w);
  }
}

template <Wrt kWrt, bool kWeighted, class T>
CUSTOMLOSS_HD T gradient(const Probability<T>& prob, T t, T w, const Coefficient<T>& g) {
  const T u = T(1) - t;
  if constexpr (kWrt == Wrt::kInput) {
    return weigh<kWeighted>(prob.slope * (t * g.a + u * g.b), w);
  } else if constexpr (kWrt == Wrt::kTarget) {
    return weigh<kWeighted>(prob.p * g.a + prob.q * g.b, w);
  } else {
    return finite_or_removed<kWeighted>(
        t * (prob.p * g.a + prob.q * g.b) + u * (prob.p * g.c + prob.q * g.d), w);
  }
}

}  // namespace
}  // namespace customloss
