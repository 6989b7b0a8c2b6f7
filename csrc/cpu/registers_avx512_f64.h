// The registers of AVX-512 that hold 8 doubles, in the words of registers_avx512.h that the loops
// of hard.h need.  Included after it.
#pragma once

namespace customloss::cpu {
namespace {

using Doubles = __m512d;

struct WideMask {
  __mmask8 bits;

  explicit WideMask(uint32_t set) : bits(static_cast<__mmask8>(set)) {}
  WideMask() = default;
};
inline uint32_t bits_of(WideMask a) { return a.bits; }
inline bool is_full(WideMask a) { return a.bits == 0xff; }

template <>
struct LanesOf<double> {
  using Register = Doubles;
  using Mask = WideMask;
  static constexpr int kLanes = 8;

  static inline Doubles all(double value) { return _mm512_set1_pd(value); }
  static inline WideMask first(int64_t count) {
    return WideMask(count < kLanes ? (1u << count) - 1u : 0xffu);
  }
  static inline WideMask nonzero(const uint8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return WideMask(_mm_test_epi8_mask(bytes, bytes));
  }
  static inline WideMask nonzero(const uint8_t* from, WideMask valid) {
    const __m128i bytes = _mm_maskz_loadu_epi8(valid.bits, from);
    return WideMask(_mm_test_epi8_mask(bytes, bytes));
  }
};

inline Doubles load(const double* from) { return _mm512_loadu_pd(from); }
inline Doubles load(const double* from, WideMask valid) {
  return _mm512_maskz_loadu_pd(valid.bits, from);
}
inline void store(double* to, Doubles value) { _mm512_storeu_pd(to, value); }
inline void store(double* to, Doubles value, WideMask valid) {
  is_full(valid) ? _mm512_storeu_pd(to, value) : _mm512_mask_storeu_pd(to, valid.bits, value);
}

inline Doubles fused(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
inline Doubles less_product(Doubles c, Doubles a, Doubles b) { return _mm512_fnmadd_pd(a, b, c); }
inline Doubles smaller(Doubles a, Doubles b) { return _mm512_min_pd(a, b); }  // b where one is NaN
inline Doubles size_of(Doubles a) { return _mm512_abs_pd(a); }
inline Doubles against(Doubles m, Doubles x) {
  return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(
      _mm512_castpd_si512(m), _mm512_castpd_si512(x), _mm512_set1_epi64(INT64_MIN), 0xd2));
}
inline uint32_t sign_bits(Doubles a) { return _mm512_movepi64_mask(_mm512_castpd_si512(a)); }

inline Doubles choose(WideMask which, Doubles yes, Doubles no) {
  return _mm512_mask_mov_pd(no, which.bits, yes);
}
inline Doubles only(WideMask which, Doubles value) {
  return _mm512_maskz_mov_pd(which.bits, value);
}
inline Doubles add_where(WideMask which, Doubles sum, Doubles value) {
  return _mm512_mask_add_pd(sum, which.bits, sum, value);
}
inline Doubles add_elsewhere(WideMask which, Doubles sum, Doubles value) {
  return _mm512_mask_add_pd(sum, static_cast<__mmask8>(~which.bits), sum, value);
}

inline double total(Doubles a) { return _mm512_reduce_add_pd(a); }

// 1 / a for a >= 1, within a unit in the last place: an estimate of 14 bits and two Newton steps,
// which are faster than a division on Intel.
inline Doubles reciprocal_of(Doubles a) {
  const Doubles one = _mm512_set1_pd(1.0);
  Doubles estimate = _mm512_rcp14_pd(a);
  estimate = fused(less_product(one, a, estimate), estimate, estimate);
  return fused(less_product(one, a, estimate), estimate, estimate);
}

// 2^n for the integer n in the low bits of `rounded`.
inline Doubles two_to_the(Doubles rounded) {
  const Ints exponent = _mm512_slli_epi64(_mm512_castpd_si512(rounded), 52);
  return _mm512_castsi512_pd(_mm512_add_epi64(exponent, _mm512_set1_epi64(int64_t{0x3ff} << 52)));
}

}  // namespace
}  // namespace customloss::cpu
