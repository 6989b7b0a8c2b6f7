// The classes of pixels that lie next to each other ([N, C] rows, channels_last), to and from the
// rows of a tile, by permutations of whole registers.  Included by isa_avx512_tiles_f32.cpp alone.
//   up to kFewClasses   16 pixels are C registers; a class takes one permutation of each of them
//   beyond              16 pixels x 16 classes are transposed in four steps
#pragma once

#include "registers_avx512.h"
#include "tile.h"

namespace customloss::cpu {
namespace {

constexpr int64_t kFewClasses = 8;

// 16 numbers from memory as float, and back; the bits of `which` are those that exist.
template <class From>
inline __m512 load16(const From* from, __mmask16 which) {
  if constexpr (sizeof(From) == 4) {
    return _mm512_maskz_loadu_ps(which, from);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(which, from);
    return widen<__is_same(From, Half)>(bits);
  }
}

template <class To>
inline void store16(To* to, __mmask16 which, __m512 value) {
  if constexpr (sizeof(To) == 4) {
    _mm512_mask_storeu_ps(to, which, value);
  } else {
    _mm256_mask_storeu_epi16(to, which, narrow<__is_same(To, Half)>(value));
  }
}

// How 16 pixels of few classes are reordered: element k of register i of the result is element
// `lane[i][k]` of that register j of the source for which `which[i][j]` has bit k.
struct Shuffle {
  alignas(64) int32_t lane[kFewClasses][16];
  __mmask16 which[kFewClasses][kFewClasses];

  // memory -> classes: register `c` takes its pixel k from element k C + c
  static Shuffle gather(int classes) {
    Shuffle result{};
    for (int c = 0; c < classes; ++c) {
      for (int k = 0; k < 16; ++k) {
        const int element = k * classes + c;
        result.lane[c][k] = element % 16;
        result.which[c][element / 16] |= static_cast<__mmask16>(1 << k);
      }
    }
    return result;
  }
  // classes -> memory: element 16 j + k is pixel (16 j + k) / C of class (16 j + k) % C
  static Shuffle scatter(int classes) {
    Shuffle result{};
    for (int j = 0; j < classes; ++j) {
      for (int k = 0; k < 16; ++k) {
        const int element = 16 * j + k;
        result.lane[j][k] = element / classes;
        result.which[j][element % classes] |= static_cast<__mmask16>(1 << k);
      }
    }
    return result;
  }
};

// Reorders kCount registers.
template <int kCount>
inline void shuffle(const Shuffle& order, const __m512 (&from)[kCount], __m512 (&to)[kCount]) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const __m512i lane = _mm512_load_si512(order.lane[i]);
    __m512 result = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int j = 0; j < kCount; ++j) {
      result = _mm512_mask_permutexvar_ps(result, order.which[i][j], lane, from[j]);
    }
    to[i] = result;
  }
}

// Turns the rows of a 16 x 16 matrix, one per register, into columns.
inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

// Calls body(std::integral_constant<int, classes>()) for 2 .. kFewClasses classes.
template <class Body>
inline void with_count(int64_t classes, const Body& body) {
  switch (classes) {
    case 2: return body(std::integral_constant<int, 2>());
    case 3: return body(std::integral_constant<int, 3>());
    case 4: return body(std::integral_constant<int, 4>());
    case 5: return body(std::integral_constant<int, 5>());
    case 6: return body(std::integral_constant<int, 6>());
    case 7: return body(std::integral_constant<int, 7>());
    default: return body(std::integral_constant<int, 8>());
  }
}

// Stages all pixels but the last pixels % 16, if classes lie next to each other; returns how many.
template <class From>
int64_t gather_pixels(const From* from, int64_t pixel_stride, int64_t classes, int64_t pixels,
                      float* to, int64_t pitch) {
  const int64_t whole = pixels / 16 * 16;
  if (classes <= kFewClasses && pixel_stride == classes) {
    with_count(classes, [&](auto count) {
      const Shuffle order = Shuffle::gather(count);
      for (int64_t i = 0; i < whole; i += 16) {
        __m512 in[count()], out[count()];
        for (int j = 0; j < count; ++j) in[j] = load16(from + i * count + 16 * j, 0xffff);
        shuffle(order, in, out);
        for (int c = 0; c < count; ++c) _mm512_storeu_ps(to + c * pitch + i, out[c]);
      }
    });
    return whole;
  }
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t c = 0; c < classes; c += 16) {
      const __mmask16 which = first_lanes(classes - c).bits;
      __m512 r[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) r[k] = load16(from + (i + k) * pixel_stride + c, which);
      transpose(r);
      const int count = static_cast<int>(classes - c < 16 ? classes - c : 16);
      for (int k = 0; k < count; ++k) _mm512_storeu_ps(to + (c + k) * pitch + i, r[k]);
    }
  }
  return whole;
}

// The same in the other direction.
template <class To>
int64_t scatter_pixels(const float* from, int64_t pitch, int64_t classes, int64_t pixels, To* to,
                       int64_t pixel_stride) {
  const int64_t whole = pixels / 16 * 16;
  if (classes <= kFewClasses && pixel_stride == classes) {
    with_count(classes, [&](auto count) {
      const Shuffle order = Shuffle::scatter(count);
      for (int64_t i = 0; i < whole; i += 16) {
        __m512 in[count()], out[count()];
        for (int c = 0; c < count; ++c) in[c] = _mm512_loadu_ps(from + c * pitch + i);
        shuffle(order, in, out);
        for (int j = 0; j < count; ++j) store16(to + i * count + 16 * j, 0xffff, out[j]);
      }
    });
    return whole;
  }
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t c = 0; c < classes; c += 16) {
      const __mmask16 which = first_lanes(classes - c).bits;
      const int count = static_cast<int>(classes - c < 16 ? classes - c : 16);
      __m512 r[16];
      for (int k = 0; k < 16; ++k) {
        r[k] = k < count ? _mm512_loadu_ps(from + (c + k) * pitch + i) : _mm512_setzero_ps();
      }
      transpose(r);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) store16(to + (i + k) * pixel_stride + c, which, r[k]);
    }
  }
  return whole;
}

}  // namespace
}  // namespace customloss::cpu
