// The registers of AVX2 that hold 4 doubles, in the words of registers_avx2.h that the loops of
// hard.h need.  Included after it.
#pragma once

namespace customloss::cpu {
namespace {

using Doubles = __m256d;

inline Doubles as_doubles(Ints a) { return _mm256_castsi256_pd(a); }
inline Ints as_ints(Doubles a) { return _mm256_castpd_si256(a); }

struct WideMask {
  Ints lanes;

  explicit WideMask(Ints set) : lanes(set) {}
  WideMask() = default;
};
inline uint32_t bits_of(WideMask a) {
  return static_cast<uint32_t>(_mm256_movemask_pd(as_doubles(a.lanes)));
}
inline bool is_full(WideMask a) { return bits_of(a) == 0xf; }

template <>
struct LanesOf<double> {
  using Register = Doubles;
  using Mask = WideMask;
  static constexpr int kLanes = 4;

  static inline Doubles all(double value) { return _mm256_set1_pd(value); }
  static inline WideMask first(int64_t count) {
    const Ints lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return WideMask(_mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane));
  }
  static inline WideMask nonzero(const uint8_t* from) {
    int32_t bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    const Ints numbers = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
    return WideMask(_mm256_cmpgt_epi64(numbers, _mm256_setzero_si256()));
  }
  static inline WideMask nonzero(const uint8_t* from, WideMask valid) {
    uint8_t bytes[kLanes] = {};
    std::memcpy(bytes, from, static_cast<size_t>(__builtin_popcount(bits_of(valid))));
    return nonzero(bytes);
  }
};

inline Doubles load(const double* from) { return _mm256_loadu_pd(from); }
inline Doubles load(const double* from, WideMask valid) {
  return _mm256_maskload_pd(from, valid.lanes);
}
inline void store(double* to, Doubles value) { _mm256_storeu_pd(to, value); }
inline void store(double* to, Doubles value, WideMask valid) {
  is_full(valid) ? _mm256_storeu_pd(to, value) : _mm256_maskstore_pd(to, valid.lanes, value);
}

inline Doubles fused(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
inline Doubles less_product(Doubles c, Doubles a, Doubles b) { return _mm256_fnmadd_pd(a, b, c); }
inline Doubles smaller(Doubles a, Doubles b) { return _mm256_min_pd(a, b); }  // b where one is NaN
inline Doubles size_of(Doubles a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
inline Doubles against(Doubles m, Doubles x) {
  return _mm256_xor_pd(m, _mm256_andnot_pd(x, _mm256_set1_pd(-0.0)));
}
inline uint32_t sign_bits(Doubles a) { return static_cast<uint32_t>(_mm256_movemask_pd(a)); }

inline Doubles choose(WideMask which, Doubles yes, Doubles no) {
  return _mm256_blendv_pd(no, yes, as_doubles(which.lanes));
}
inline Doubles only(WideMask which, Doubles value) {
  return _mm256_and_pd(as_doubles(which.lanes), value);
}
inline Doubles add_where(WideMask which, Doubles sum, Doubles value) {
  return sum + only(which, value);
}
inline Doubles add_elsewhere(WideMask which, Doubles sum, Doubles value) {
  return sum + _mm256_andnot_pd(as_doubles(which.lanes), value);
}

inline double total(Doubles a) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

inline Doubles reciprocal_of(Doubles a) { return _mm256_set1_pd(1.0) / a; }

// 2^n for the integer n in the low bits of `rounded`.
inline Doubles two_to_the(Doubles rounded) {
  return as_doubles(_mm256_add_epi64(_mm256_slli_epi64(as_ints(rounded), 52),
                                     _mm256_set1_epi64x(int64_t{0x3ff} << 52)));
}

}  // namespace
}  // namespace customloss::cpu
