// Stands in for <immintrin.h> when emulate_avx512.py compiles the loops for AVX-512: SIMDe does
// most of them with AVX2, and what it lacks is written out here, lane by lane.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace avx512_by_avx2 {

template <class T, int kCount>
struct Lanes {
  T at[kCount] = {};
};

template <class T, int kCount, class From>
inline Lanes<T, kCount> lanes(From from) {
  static_assert(sizeof(From) == sizeof(Lanes<T, kCount>));
  Lanes<T, kCount> to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <class To, class From>
inline To whole(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The numbers in memory whose bits are set in `which`, and those of `other`.
template <class V, class T>
inline V masked_load(V other, uint32_t which, const void* from) {
  constexpr int kCount = sizeof(V) / sizeof(T);
  auto to = lanes<T, kCount>(other);
  for (int i = 0; i < kCount; ++i) {
    if (which >> i & 1) std::memcpy(&to.at[i], static_cast<const T*>(from) + i, sizeof(T));
  }
  return whole<V>(to);
}
template <class V, class T>
inline void masked_store(void* to, uint32_t which, V value) {
  constexpr int kCount = sizeof(V) / sizeof(T);
  const auto from = lanes<T, kCount>(value);
  for (int i = 0; i < kCount; ++i) {
    if (which >> i & 1) std::memcpy(static_cast<T*>(to) + i, &from.at[i], sizeof(T));
  }
}

// Each number of `value` as a To.
template <class V, class To, class From, class W>
inline V converted(W value) {
  constexpr int kCount = sizeof(W) / sizeof(From);
  const auto from = lanes<From, kCount>(value);
  Lanes<To, kCount> to;
  for (int i = 0; i < kCount; ++i) to.at[i] = static_cast<To>(from.at[i]);
  return whole<V>(to);
}

inline simde__m512 widened(__m256i halves) {
  const auto from = lanes<__m128i, 2>(halves);
  const __m256 to[2] = {_mm256_cvtph_ps(from.at[0]), _mm256_cvtph_ps(from.at[1])};
  return whole<simde__m512>(to);
}
inline __m256i narrowed(simde__m512 value) {
  const auto from = lanes<__m256, 2>(value);
  const __m128i to[2] = {_mm256_cvtps_ph(from.at[0], _MM_FROUND_TO_NEAREST_INT),
                         _mm256_cvtps_ph(from.at[1], _MM_FROUND_TO_NEAREST_INT)};
  return whole<__m256i>(to);
}

inline simde__m512 fused_where(simde__m512 a, simde__m512 b, simde__m512 sum, uint32_t which) {
  const auto x = lanes<float, 16>(a), y = lanes<float, 16>(b);
  auto to = lanes<float, 16>(sum);
  for (int i = 0; i < 16; ++i) {
    if (which >> i & 1) to.at[i] = std::fma(x.at[i], y.at[i], to.at[i]);
  }
  return whole<simde__m512>(to);
}

// About 14 bits of 1 / a: here those of the quotient, rounded.  The lowest kDropped bits are 0.
template <class T, class Bits, int kDropped, class V>
inline V estimate(V a) {
  auto to = lanes<T, sizeof(V) / sizeof(T)>(a);
  for (T& number : to.at) {
    const T quotient = T(1) / number;
    Bits bits;
    std::memcpy(&bits, &quotient, sizeof(bits));
    bits = (bits + (Bits{1} << (kDropped - 1))) >> kDropped << kDropped;
    if (quotient == quotient) std::memcpy(&number, &bits, sizeof(bits));
  }
  return whole<V>(to);
}

template <class T, class V>
inline T total(V a) {
  constexpr int kCount = sizeof(V) / sizeof(T);
  auto of = lanes<T, kCount>(a);
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) of.at[i] += of.at[i + half];
  }
  return of.at[0];
}

inline simde__m512 shuffled(simde__m512 a, simde__m512 b, int order) {
  const auto x = lanes<__m128, 4>(a), y = lanes<__m128, 4>(b);
  const __m128 to[4] = {x.at[order & 3], x.at[order >> 2 & 3], y.at[order >> 4 & 3],
                        y.at[order >> 6 & 3]};
  return whole<simde__m512>(to);
}

inline uint16_t nonzero(__m128i a, __m128i b) {
  const auto x = lanes<uint8_t, 16>(a), y = lanes<uint8_t, 16>(b);
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= (x.at[i] & y.at[i]) != 0 ? 1u << i : 0u;
  return static_cast<uint16_t>(bits);
}

}  // namespace avx512_by_avx2

#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtph_ps avx512_by_avx2::widened
#define _mm512_cvtps_ph(value, rounding) avx512_by_avx2::narrowed(value)
#define _mm512_cvtepu16_epi32 avx512_by_avx2::converted<simde__m512i, uint32_t, uint16_t>
#define _mm512_cvtepi32_epi16 avx512_by_avx2::converted<__m256i, uint16_t, uint32_t>
#define _mm512_mask3_fmadd_ps avx512_by_avx2::fused_where
#define _mm512_rcp14_ps avx512_by_avx2::estimate<float, uint32_t, 10>
#define _mm512_rcp14_pd avx512_by_avx2::estimate<double, uint64_t, 39>
#define _mm512_reduce_add_ps avx512_by_avx2::total<float>
#define _mm512_reduce_add_pd avx512_by_avx2::total<double>
#define _mm512_shuffle_f32x4 avx512_by_avx2::shuffled
#define _mm_test_epi8_mask avx512_by_avx2::nonzero
#define _mm512_mask_loadu_epi32 avx512_by_avx2::masked_load<simde__m512i, uint32_t>
#define _mm512_maskz_loadu_ps(which, from) \
  avx512_by_avx2::masked_load<simde__m512, float>(simde_mm512_setzero_ps(), which, from)
#define _mm512_maskz_loadu_pd(which, from) \
  avx512_by_avx2::masked_load<simde__m512d, double>(simde_mm512_setzero_pd(), which, from)
#define _mm256_maskz_loadu_epi16(which, from) \
  avx512_by_avx2::masked_load<__m256i, uint16_t>(_mm256_setzero_si256(), which, from)
#define _mm_maskz_loadu_epi8(which, from) \
  avx512_by_avx2::masked_load<__m128i, uint8_t>(_mm_setzero_si128(), which, from)
#define _mm512_mask_storeu_ps(to, which, value) \
  avx512_by_avx2::masked_store<simde__m512, float>(to, which, value)
#define _mm256_mask_storeu_epi16(to, which, value) \
  avx512_by_avx2::masked_store<__m256i, uint16_t>(to, which, value)
#define _mm512_mask_storeu_pd(to, which, value) \
  avx512_by_avx2::masked_store<simde__m512d, double>(to, which, value)
