// e^-c of registers of doubles, as exp_minus of element.h computes it.  Included after
// registers_*_f64.h.
#pragma once

#include "../element.h"

namespace customloss::cpu {
namespace {

template <int kVectors>
inline void negative_exp(const Doubles (&c)[kVectors], Doubles (&e)[kVectors]) {
  using Lanes = LanesOf<double>;
  const Doubles round = Lanes::all(0x1.8p52), one = Lanes::all(1.0);
  Doubles b[kVectors], n[kVectors], r[kVectors], power[kVectors];
  // at 709 the power of two and the result are 0; a NaN stays, as the second operand
  CUSTOMLOSS_EACH(b[u] = smaller(Lanes::all(709.0), c[u]))
  CUSTOMLOSS_EACH(n[u] = fused(b[u], Lanes::all(-1.4426950408889634), round))
  CUSTOMLOSS_EACH(power[u] = two_to_the(n[u]))
  CUSTOMLOSS_EACH(n[u] = n[u] - round)
  CUSTOMLOSS_EACH(r[u] = less_product(-b[u], n[u], Lanes::all(0x1.62e42fefa38p-1)))
  CUSTOMLOSS_EACH(r[u] = less_product(r[u], n[u], Lanes::all(0x1.ef35793c7673p-45)))
  CUSTOMLOSS_EACH(e[u] = Lanes::all(exp_coefficient(9)))
#pragma GCC unroll 9
  for (int k = 8; k >= 0; --k) {
    CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], Lanes::all(exp_coefficient(k))))
  }
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(e[u] = e[u] * power[u])
}

}  // namespace
}  // namespace customloss::cpu
