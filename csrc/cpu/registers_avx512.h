// The registers of AVX-512, in the words that the loops by hand are written in: 16 floats, 16
// integers, and a mask of 16 bits.  registers_avx2.h and registers_neon.h
// have the same words.  Included where AVX-512 is
// switched on.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "registers.h"

namespace customloss::cpu {
namespace {

using Floats = __m512;
using Ints = __m512i;
constexpr int kLanes = 16;
constexpr int kStep = 4;         // registers that a loop takes at a time
constexpr int kMaskStep = 4;     // the same of masks with a log-loss
constexpr int kSoftmaxStep = 2;  // the same of a softmax, which has more to remember of each

// One bit for each lane.
struct Mask {
  __mmask16 bits;

  explicit Mask(uint32_t set) : bits(static_cast<__mmask16>(set)) {}
  Mask() = default;
};
inline uint32_t bits_of(Mask a) { return a.bits; }
inline Mask operator&(Mask a, Mask b) { return Mask(a.bits & b.bits); }
inline Mask without(Mask a, Mask b) { return Mask(a.bits & ~b.bits); }
inline Mask alike(Mask a, Mask b) { return Mask(~(a.bits ^ b.bits)); }
inline Mask all_lanes() { return Mask(0xffff); }
inline Mask first_lanes(int64_t count) { return Mask(count < 16 ? (1u << count) - 1u : 0xffffu); }
inline bool is_full(Mask a) { return a.bits == 0xffff; }

inline Floats floats(float value) { return _mm512_set1_ps(value); }
inline Ints ints(int32_t value) { return _mm512_set1_epi32(value); }

// ---- memory -----------------------------------------------------------------------------

// Masked loads are for tails only: the hardware prefetcher does not follow them.
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load(const float* from, Mask valid) {
  return _mm512_maskz_loadu_ps(valid.bits, from);
}
inline void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
inline void store(float* to, Floats value, Mask valid) {
  is_full(valid) ? _mm512_storeu_ps(to, value) : _mm512_mask_storeu_ps(to, valid.bits, value);
}
// Counts that lie in memory meant for floats.
inline Ints load_ints(const float* from) { return _mm512_loadu_si512(from); }
inline void store_ints(float* to, Ints value) { _mm512_storeu_si512(to, value); }
// `other` where a lane is not valid
inline Ints load_ints(const int32_t* from, Mask valid, int32_t other) {
  return _mm512_mask_loadu_epi32(ints(other), valid.bits, from);
}

inline Mask nonzero_bytes(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return Mask(_mm_test_epi8_mask(bytes, bytes));
}
inline Mask nonzero_bytes(const uint8_t* from, Mask valid) {
  const __m128i bytes = _mm_maskz_loadu_epi8(valid.bits, from);
  return Mask(_mm_test_epi8_mask(bytes, bytes));
}

template <bool kFloat16>
inline Floats widen(__m256i halves) {
  if constexpr (kFloat16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
template <bool kFloat16>
inline Floats load_halves(const uint16_t* from) {
  return widen<kFloat16>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
template <bool kFloat16>
inline Floats load_halves(const uint16_t* from, Mask valid) {
  return widen<kFloat16>(_mm256_maskz_loadu_epi16(valid.bits, from));
}

// Rounded to nearest even.
template <bool kFloat16>
inline __m256i narrow(Floats value) {
  if constexpr (kFloat16) return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
  const Ints bits = _mm512_castps_si512(value);
  const Ints odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const Ints up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0)));
}
template <bool kFloat16>
inline void store_halves(uint16_t* to, Floats value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow<kFloat16>(value));
}
template <bool kFloat16>
inline void store_halves(uint16_t* to, Floats value, Mask valid) {
  _mm256_mask_storeu_epi16(to, valid.bits, narrow<kFloat16>(value));
}

// ---- lanes ------------------------------------------------------------------------------

inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
inline Floats less_product(Floats c, Floats a, Floats b) {                              // c - a b
  return _mm512_fnmadd_ps(a, b, c);
}
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one is NaN
inline Floats size_of(Floats a) { return _mm512_abs_ps(a); }
// m where the sign of x is set, else -m, for m >= 0
inline Floats against(Floats m, Floats x) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_castps_si512(m), _mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN), 0xd2));
}

inline Mask negative(Floats a) { return Mask(_mm512_movepi32_mask(_mm512_castps_si512(a))); }
inline uint32_t sign_bits(Floats a) { return negative(a).bits; }
inline Mask equal(Floats a, Floats b) { return Mask(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)); }
inline Mask unequal(Floats a, Floats b) { return Mask(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ)); }
inline Mask below(Floats a, Floats b) { return Mask(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)); }
inline Mask equal(Ints a, Ints b) { return Mask(_mm512_cmpeq_epi32_mask(a, b)); }
inline Mask not_negative(Ints a) {
  return Mask(_mm512_cmpge_epi32_mask(a, _mm512_setzero_si512()));
}

inline Floats choose(Mask which, Floats yes, Floats no) {
  return _mm512_mask_mov_ps(no, which.bits, yes);
}
inline Ints choose(Mask which, Ints yes, Ints no) {
  return _mm512_mask_mov_epi32(no, which.bits, yes);
}
inline Floats only(Mask which, Floats value) { return _mm512_maskz_mov_ps(which.bits, value); }
inline Floats add_where(Mask which, Floats sum, Floats value) {
  return _mm512_mask_add_ps(sum, which.bits, sum, value);
}
inline Floats add_elsewhere(Mask which, Floats sum, Floats value) {
  return _mm512_mask_add_ps(sum, static_cast<__mmask16>(~which.bits), sum, value);
}
inline Ints add_where(Mask which, Ints sum, Ints value) {
  return _mm512_mask_add_epi32(sum, which.bits, sum, value);
}
// a b + sum; elsewhere it may be 0 b + sum, so b must be finite there
inline Floats fused_where(Mask which, Floats a, Floats b, Floats sum) {
  return _mm512_mask3_fmadd_ps(a, b, sum, which.bits);
}
inline Floats fused_elsewhere(Mask which, Floats a, Floats b, Floats sum) {
  return _mm512_mask3_fmadd_ps(a, b, sum, static_cast<__mmask16>(~which.bits));
}

inline Ints sum_of(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
// 1 in byte `which` of a lane, 0 to 3, and 0 where it is -1.
inline Ints unit_in_byte(Ints which) {
  const Ints units =
      _mm512_setr_epi32(1, 1 << 8, 1 << 16, 1 << 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_permutexvar_epi32(which, units);
}
// The sum of byte `which` of all lanes.
inline int32_t byte_total(Ints a, int64_t which) {
  const Ints low = _mm512_srl_epi32(a, _mm_cvtsi64_si128(8 * which));
  return _mm512_reduce_add_epi32(_mm512_and_si512(low, ints(255)));
}

inline float total(Floats a) { return _mm512_reduce_add_ps(a); }

// 1 / a for a >= 1, within a unit in the last place: an estimate of 14 bits and a Newton step,
// which are faster than a division on Intel.
inline Floats reciprocal_of(Floats a) {
  const Floats estimate = _mm512_rcp14_ps(a);
  const Floats error = less_product(floats(1.0f), a, estimate);
  return fused(error, estimate, estimate);
}

// e^-c for c >= 0: 2^(n/32) e^r with |r| <= log(2)/64, 2^(n/32) by a table of 32 entries in two
// registers, e^r by a parabola.
template <int kVectors>
inline void negative_exp(const Floats (&c)[kVectors], Floats (&e)[kVectors]) {
  const Floats round = floats(0x1.8p23f), one = floats(1.0f);
  const Ints low = _mm512_load_si512(kExp2<32>.bits), high = _mm512_load_si512(kExp2<32>.bits + 16);
  Floats n[kVectors], r[kVectors];
  Ints bits[kVectors];
  Mask normal[kVectors];
  // Beyond this bound e^-c is subnormal and becomes exactly 0, as in element.h.  The comparison is
  // "not >=" so that a NaN stays.
  CUSTOMLOSS_EACH(normal[u] = Mask(_mm512_cmp_ps_mask(c[u], floats(87.68312f), _CMP_NGE_UQ)))
  CUSTOMLOSS_EACH(n[u] = fused(c[u], floats(-46.1662413f), round))
  CUSTOMLOSS_EACH(bits[u] = _mm512_castps_si512(n[u]))
  CUSTOMLOSS_EACH(n[u] = n[u] - round)
  CUSTOMLOSS_EACH(r[u] = _mm512_fnmsub_ps(n[u], floats(0x1.62e43p-6f), c[u]))
  CUSTOMLOSS_EACH(e[u] = fused(r[u], floats(0x1.ffff0ap-2f), floats(0x1.0000f6p+0f)))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(bits[u] = _mm512_add_epi32(_mm512_slli_epi32(bits[u], 18),
                                             _mm512_permutex2var_epi32(low, bits[u], high)))
  CUSTOMLOSS_EACH(e[u] = _mm512_maskz_mul_ps(normal[u].bits, e[u], _mm512_castsi512_ps(bits[u])))
}

}  // namespace
}  // namespace customloss::cpu
