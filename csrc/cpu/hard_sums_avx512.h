// The four sums of sigmoids with bool targets, by hand, for the loops of hard_avx512.h and
// mask_avx512.h.
//
// Let m = sigmoid(-|x|) <= 1/2, and d = m where x < 0, -m elsewhere.  Over the elements with target
// 1, and likewise over those with target 0,
//   sum of p = #(x >= 0) + sum of d        sum of 1-p = #(x < 0) - sum of d
// Neither cancels, as each count is at least twice what is subtracted from it.
// So two masked additions and three popcounts serve all four sums.
#pragma once

#include "registers_avx512.h"

namespace customloss::cpu {
namespace {

// m copysign(1, -x): m ^ (~x & sign bit)
inline __m512 signed_miss(__m512 m, __m512 x) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_castps_si512(m), _mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN), 0xd2));
}

// d = m copysign(1, -x), m = e^-|x| / (1 + e^-|x|).
template <int kVectors>
inline void signed_misses(const __m512 (&x)[kVectors], __m512 (&d)[kVectors]) {
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 c[kVectors], e[kVectors];
  CUSTOMLOSS_EACH(c[u] = _mm512_abs_ps(x[u]))
  negative_exp(c, e);
  CUSTOMLOSS_EACH(e[u] = _mm512_mul_ps(e[u], reciprocal_of(_mm512_add_ps(one, e[u]))))
  CUSTOMLOSS_EACH(d[u] = signed_miss(e[u], x[u]))
}

inline __mmask16 negative(__m512 x) { return _mm512_movepi32_mask(_mm512_castps_si512(x)); }

// The sums of d for targets 1 and 0, and the counts of targets and signs.
struct HardSums {
  __m512 positives, negatives;
  int64_t size, target = 0, below = 0, target_below = 0;

  // Spelled out, because an implicit constructor would lack this file's instruction set.
  explicit HardSums(int64_t n)
      : positives(_mm512_setzero_ps()), negatives(_mm512_setzero_ps()), size(n) {}

  // The bits of m[u] are the lanes of x[u] whose target is 1, those of `valid` all that exist.
  template <int kVectors>
  inline void add(const __m512 (&x)[kVectors], const __m512 (&d)[kVectors],
                  const __mmask16 (&m)[kVectors], __mmask16 valid) {
    uint64_t is_target = 0, is_below = 0;
    CUSTOMLOSS_EACH(positives = _mm512_mask_add_ps(positives, m[u], positives, d[u]))
    CUSTOMLOSS_EACH(negatives = _mm512_mask_add_ps(negatives, static_cast<__mmask16>(valid & ~m[u]),
                                                   negatives, d[u]))
    CUSTOMLOSS_EACH(is_target |= static_cast<uint64_t>(m[u]) << (16 * u))
    CUSTOMLOSS_EACH(is_below |= static_cast<uint64_t>(negative(x[u]) & valid) << (16 * u))
    target += __builtin_popcountll(is_target);
    below += __builtin_popcountll(is_below);
    target_below += __builtin_popcountll(is_target & is_below);
  }

  void flush(double* sums) const {
    const double p = _mm512_reduce_add_ps(positives), q = _mm512_reduce_add_ps(negatives);
    sums[0] += static_cast<double>(target - target_below) + p;
    sums[1] += static_cast<double>(size - target - (below - target_below)) + q;
    sums[2] += static_cast<double>(target_below) - p;
    sums[3] += static_cast<double>(below - target_below) - q;
  }
};

}  // namespace
}  // namespace customloss::cpu
