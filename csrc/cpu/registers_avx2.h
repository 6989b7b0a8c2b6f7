// The registers of AVX2, in the words that the loops by hand are written in: 8 floats, 8 integers,
// and a mask that is a register of all bits or none.  registers_avx512.h and
// registers_neon.h have the same words.
// Included where AVX2 is switched on.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "registers.h"

namespace customloss::cpu {
namespace {

using Floats = __m256;
using Ints = __m256i;
constexpr int kLanes = 8;
constexpr int kStep = 4;         // registers that a loop takes at a time
constexpr int kMaskStep = 4;     // the same of masks with a log-loss
constexpr int kSoftmaxStep = 2;  // the same of a softmax, which has more to remember of each

inline Floats as_floats(Ints a) { return _mm256_castsi256_ps(a); }
inline Ints as_ints(Floats a) { return _mm256_castps_si256(a); }

struct Mask {
  Ints lanes;

  explicit Mask(Ints set) : lanes(set) {}
  explicit Mask(Floats set) : lanes(as_ints(set)) {}
  Mask() = default;
};
inline uint32_t bits_of(Mask a) {
  return static_cast<uint32_t>(_mm256_movemask_ps(as_floats(a.lanes)));
}
inline Mask operator&(Mask a, Mask b) { return Mask(_mm256_and_si256(a.lanes, b.lanes)); }
inline Mask without(Mask a, Mask b) { return Mask(_mm256_andnot_si256(b.lanes, a.lanes)); }
inline Mask alike(Mask a, Mask b) { return Mask(_mm256_cmpeq_epi32(a.lanes, b.lanes)); }
inline Mask all_lanes() { return Mask(_mm256_set1_epi32(-1)); }
inline Mask first_lanes(int64_t count) {
  const Ints lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int32_t most = count < kLanes ? static_cast<int32_t>(count) : kLanes;
  return Mask(_mm256_cmpgt_epi32(_mm256_set1_epi32(most), lane));
}
inline bool is_full(Mask a) { return bits_of(a) == 0xff; }

inline Floats floats(float value) { return _mm256_set1_ps(value); }
inline Ints ints(int32_t value) { return _mm256_set1_epi32(value); }

// ---- memory -----------------------------------------------------------------------------

// Masked loads are for tails only: the hardware prefetcher does not follow them.
inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline Floats load(const float* from, Mask valid) { return _mm256_maskload_ps(from, valid.lanes); }
inline void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
inline void store(float* to, Floats value, Mask valid) {
  is_full(valid) ? _mm256_storeu_ps(to, value) : _mm256_maskstore_ps(to, valid.lanes, value);
}
// Counts that lie in memory meant for floats.
inline Ints load_ints(const float* from) { return as_ints(load(from)); }
inline void store_ints(float* to, Ints value) { store(to, as_floats(value)); }
// `other` where a lane is not valid
inline Ints load_ints(const int32_t* from, Mask valid, int32_t other) {
  return _mm256_blendv_epi8(ints(other), _mm256_maskload_epi32(from, valid.lanes), valid.lanes);
}

inline Mask nonzero_bytes(__m128i bytes) {
  return Mask(_mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_setzero_si256()));
}
inline Mask nonzero_bytes(const uint8_t* from) {
  return nonzero_bytes(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

// The numbers of a tail, whose lanes are the first ones, and zeros.
template <class Number>
inline __m128i load_some(const Number* from, Mask valid) {
  Number numbers[16 / sizeof(Number)] = {};
  std::memcpy(numbers, from,
              sizeof(Number) * static_cast<size_t>(__builtin_popcount(bits_of(valid))));
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers));
}
inline Mask nonzero_bytes(const uint8_t* from, Mask valid) {
  return nonzero_bytes(load_some(from, valid));
}

template <bool kFloat16>
inline Floats widen(__m128i halves) {
  if constexpr (kFloat16) return _mm256_cvtph_ps(halves);
  return as_floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
template <bool kFloat16>
inline Floats load_halves(const uint16_t* from) {
  return widen<kFloat16>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
template <bool kFloat16>
inline Floats load_halves(const uint16_t* from, Mask valid) {
  return widen<kFloat16>(load_some(from, valid));
}

// Rounded to nearest even.
template <bool kFloat16>
inline __m128i narrow(Floats value) {
  if constexpr (kFloat16) return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
  const Ints bits = as_ints(value);
  const Ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), ints(1));
  const Ints up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, ints(0x7fff)));
  const Ints nan = as_ints(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const Ints rounded = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), ints(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
template <bool kFloat16>
inline void store_halves(uint16_t* to, Floats value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow<kFloat16>(value));
}
template <bool kFloat16>
inline void store_halves(uint16_t* to, Floats value, Mask valid) {
  const __m128i numbers = narrow<kFloat16>(value);
  std::memcpy(to, &numbers, sizeof(*to) * static_cast<size_t>(__builtin_popcount(bits_of(valid))));
}

// ---- lanes ------------------------------------------------------------------------------

inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }  // a b + c
inline Floats less_product(Floats c, Floats a, Floats b) {                              // c - a b
  return _mm256_fnmadd_ps(a, b, c);
}
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one is NaN
inline Floats size_of(Floats a) { return _mm256_andnot_ps(floats(-0.0f), a); }
// m where the sign of x is set, else -m, for m >= 0
inline Floats against(Floats m, Floats x) {
  return _mm256_xor_ps(m, _mm256_andnot_ps(x, floats(-0.0f)));
}

inline Mask negative(Floats a) { return Mask(_mm256_srai_epi32(as_ints(a), 31)); }
inline uint32_t sign_bits(Floats a) { return static_cast<uint32_t>(_mm256_movemask_ps(a)); }
inline Mask equal(Floats a, Floats b) { return Mask(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline Mask unequal(Floats a, Floats b) { return Mask(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)); }
inline Mask below(Floats a, Floats b) { return Mask(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline Mask equal(Ints a, Ints b) { return Mask(_mm256_cmpeq_epi32(a, b)); }
inline Mask not_negative(Ints a) { return Mask(_mm256_cmpgt_epi32(a, ints(-1))); }

inline Floats choose(Mask which, Floats yes, Floats no) {
  return _mm256_blendv_ps(no, yes, as_floats(which.lanes));
}
inline Ints choose(Mask which, Ints yes, Ints no) {
  return _mm256_blendv_epi8(no, yes, which.lanes);
}
inline Floats only(Mask which, Floats value) {
  return _mm256_and_ps(as_floats(which.lanes), value);
}
inline Floats add_where(Mask which, Floats sum, Floats value) { return sum + only(which, value); }
inline Floats add_elsewhere(Mask which, Floats sum, Floats value) {
  return sum + _mm256_andnot_ps(as_floats(which.lanes), value);
}
inline Ints add_where(Mask which, Ints sum, Ints value) {
  return _mm256_add_epi32(sum, _mm256_and_si256(which.lanes, value));
}
// a b + sum; elsewhere it may be 0 b + sum, so b must be finite there
inline Floats fused_where(Mask which, Floats a, Floats b, Floats sum) {
  return fused(only(which, a), b, sum);
}
inline Floats fused_elsewhere(Mask which, Floats a, Floats b, Floats sum) {
  return fused(_mm256_andnot_ps(as_floats(which.lanes), a), b, sum);
}

inline Ints sum_of(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
// 1 in byte `which` of a lane, 0 to 3, and 0 where it is -1.
inline Ints unit_in_byte(Ints which) {
  const Ints units = _mm256_setr_epi32(1, 1 << 8, 1 << 16, 1 << 24, 0, 0, 0, 0);
  return _mm256_permutevar8x32_epi32(units, which);
}
// The sum of byte `which` of all lanes.
inline int32_t byte_total(Ints a, int64_t which) {
  const Ints low = _mm256_srl_epi32(a, _mm_cvtsi64_si128(8 * which));
  const __m256i sums = _mm256_sad_epu8(_mm256_and_si256(low, ints(255)), _mm256_setzero_si256());
  const __m128i two =
      _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

inline float total(Floats a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// 1 / a for a >= 1.
inline Floats reciprocal_of(Floats a) { return floats(1.0f) / a; }

// e^-c for c >= 0: 2^(n/8) e^r with |r| <= log(2)/16, 2^(n/8) by a table in a register, e^r by a
// cubic.
template <int kVectors>
inline void negative_exp(const Floats (&c)[kVectors], Floats (&e)[kVectors]) {
  const Floats round = floats(0x1.8p23f), one = floats(1.0f);
  const Ints powers = _mm256_load_si256(reinterpret_cast<const Ints*>(kExp2<8>.bits));
  Floats b[kVectors], n[kVectors], r[kVectors];
  Ints bits[kVectors];
  // At 88 the exponent of 2^(n/8) is that of 0, and so is e^-c.  A NaN stays, as the second
  // operand.
  CUSTOMLOSS_EACH(b[u] = _mm256_min_ps(floats(88.0f), c[u]))
  CUSTOMLOSS_EACH(n[u] = fused(b[u], floats(-0x1.715476p+3f), round))
  CUSTOMLOSS_EACH(bits[u] = as_ints(n[u]))
  CUSTOMLOSS_EACH(n[u] = n[u] - round)
  CUSTOMLOSS_EACH(r[u] = _mm256_fnmsub_ps(n[u], floats(0x1.62e43p-4f), b[u]))
  CUSTOMLOSS_EACH(e[u] = fused(r[u], floats(0x1.55568cp-3f), floats(0x1.000876p-1f)))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(bits[u] = _mm256_add_epi32(_mm256_slli_epi32(bits[u], 20),
                                             _mm256_permutevar8x32_epi32(powers, bits[u])))
  CUSTOMLOSS_EACH(e[u] = e[u] * as_floats(bits[u]))
}

}  // namespace
}  // namespace customloss::cpu
