// What the loops by hand have in common: e^-c of several registers, the lanes of a tail, loads.
// Included where AVX-512 is switched on.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace customloss::cpu {
namespace {

// The bits of 2^(j/32) for j = 0..31.
constexpr uint32_t kExp2Bits[32] = {
    0x3f800000, 0x3f82cd87, 0x3f85aac3, 0x3f88980f, 0x3f8b95c2, 0x3f8ea43a, 0x3f91c3d3, 0x3f94f4f0,
    0x3f9837f0, 0x3f9b8d3a, 0x3f9ef532, 0x3fa27043, 0x3fa5fed7, 0x3fa9a15b, 0x3fad583f, 0x3fb123f6,
    0x3fb504f3, 0x3fb8fbaf, 0x3fbd08a4, 0x3fc12c4d, 0x3fc5672a, 0x3fc9b9be, 0x3fce248c, 0x3fd2a81e,
    0x3fd744fd, 0x3fdbfbb8, 0x3fe0ccdf, 0x3fe5b907, 0x3feac0c7, 0x3fefe4ba, 0x3ff5257d, 0x3ffa83b3,
};

// The same less j << 18, so that adding n << 18 to entry n % 32 gives 2^(n/32).
struct Exp2Table {
  alignas(64) uint32_t bits[32] = {};
  constexpr Exp2Table() {
    for (uint32_t j = 0; j < 32; ++j) bits[j] = kExp2Bits[j] - (j << 18);
  }
};
constexpr Exp2Table kExp2;

#define CUSTOMLOSS_EACH(statement) \
  _Pragma("GCC unroll 8") for (int u = 0; u < kVectors; ++u) { statement; }

// e^-c of kVectors registers, c >= 0.  Each step is done for all of them, so that their dependency
// chains overlap.  e^-c = 2^(n/32) e^r with |r| <= log(2)/64: 2^(n/32) by a table of 32 entries in
// two registers, e^r by a parabola.
template <int kVectors>
inline void negative_exp(const __m512 (&c)[kVectors], __m512 (&e)[kVectors]) {
  const __m512 round = _mm512_set1_ps(0x1.8p23f), one = _mm512_set1_ps(1.0f);
  const __m512i low = _mm512_load_si512(kExp2.bits), high = _mm512_load_si512(kExp2.bits + 16);
  __m512 n[kVectors], r[kVectors];
  __m512i bits[kVectors];
  __mmask16 normal[kVectors];
  // Beyond this bound e^-c is subnormal and becomes exactly 0, as in element.h.  The comparison is
  // "not >=" so that a NaN stays.
  CUSTOMLOSS_EACH(normal[u] = _mm512_cmp_ps_mask(c[u], _mm512_set1_ps(87.68312f), _CMP_NGE_UQ))
  CUSTOMLOSS_EACH(n[u] = _mm512_fmadd_ps(c[u], _mm512_set1_ps(-46.1662413f), round))
  CUSTOMLOSS_EACH(bits[u] = _mm512_castps_si512(n[u]); n[u] = _mm512_sub_ps(n[u], round))
  CUSTOMLOSS_EACH(r[u] = _mm512_fnmsub_ps(n[u], _mm512_set1_ps(0x1.62e43p-6f), c[u]))
  CUSTOMLOSS_EACH(
      e[u] = _mm512_fmadd_ps(r[u], _mm512_set1_ps(0x1.ffff0ap-2f), _mm512_set1_ps(0x1.0000f6p+0f)))
  CUSTOMLOSS_EACH(e[u] = _mm512_fmadd_ps(e[u], r[u], one))
  CUSTOMLOSS_EACH(bits[u] = _mm512_add_epi32(_mm512_slli_epi32(bits[u], 18),
                                             _mm512_permutex2var_epi32(low, bits[u], high)))
  CUSTOMLOSS_EACH(e[u] = _mm512_maskz_mul_ps(normal[u], e[u], _mm512_castsi512_ps(bits[u])))
}

// 1 / a for a >= 1, within a unit in the last place: an estimate of 14 bits and a Newton step,
// which are faster than a division on Intel.
inline __m512 reciprocal_of(__m512 a) {
  const __m512 estimate = _mm512_rcp14_ps(a);
  const __m512 error = _mm512_fnmadd_ps(a, estimate, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(error, estimate, estimate);
}

inline __mmask16 first(int64_t lanes) {
  return lanes < 16 ? static_cast<__mmask16>((1u << lanes) - 1u) : 0xffff;
}

// Masked loads are for tails only: the hardware prefetcher does not follow them.
inline __mmask16 nonzero_bytes(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm_test_epi8_mask(bytes, bytes);
}
inline __mmask16 nonzero_bytes(const uint8_t* from, __mmask16 valid) {
  const __m128i bytes = _mm_maskz_loadu_epi8(valid, from);
  return _mm_test_epi8_mask(bytes, bytes);
}

inline void store(float* to, __m512 value, __mmask16 valid) {
  valid == 0xffff ? _mm512_storeu_ps(to, value) : _mm512_mask_storeu_ps(to, valid, value);
}

inline __m512 widen_f16(__m256i halves) { return _mm512_cvtph_ps(halves); }
inline __m512 widen_bf16(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

}  // namespace
}  // namespace customloss::cpu
