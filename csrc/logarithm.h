// Logarithms and powers that vectorise, for pixel.h.  Compiled for the host and for the device.
#pragma once

#include "element.h"

namespace customloss {
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
  // n + 1024 in the last bits of 2^52: AVX2 has no conversion from 64-bit integers
  const uint64_t biased = (shifted + 0x4000000000000000ull) >> 52;
  const double n = bit_cast<double>(biased | 0x4330000000000000ull) - (0x1p52 + 1024.0);
  const double f = bit_cast<double>(bits - shifted) - 1.0;
  return n * kLog2<double> + (n * kLog2Rest<double> + log_tail(f) + f);
#endif
}

// log(1 + u) for u >= 0, accurate for a small u too; `inverse` is 1 / (1 + u).
template <class T>
CUSTOMLOSS_HD T log1p_of(T u, T inverse) {
  const T y = T(1) + u;
  const T rounded_off = u < T(1) ? u - (y - T(1)) : T(1) - (y - u);
  return log_of(y) + rounded_off * inverse;
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
  const Flag<T> above_third(u > T(1) / T(3));  // 1 + u is 2 (1 + f) above 1/3, else 1 + f
  const T f = select(above_third, u * T(0.5) - T(0.5), u);
  const T log = select(above_third, kLog2Rest<T>, T(0)) + log_tail(f) + f;
  return select(above_third, kLog2<T>, T(0)) + log;
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

}  // namespace
}  // namespace customloss
