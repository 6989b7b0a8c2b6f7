// The classes of pixels that lie next to each other ([N, C] rows, channels_last), to and from the
// rows of a tile: 8 pixels x 8 classes are transposed in registers.  Included by
// isa_avx2_tiles_f32.cpp alone.
#pragma once

#include <algorithm>

#include "registers_avx2.h"
#include "tile.h"

namespace customloss::cpu {
namespace {

// Eight numbers from memory as float, and back; `which` are those that exist.
template <class From>
inline Floats load8(const From* from) {
  if constexpr (sizeof(From) == 4) {
    return load(from);
  } else {
    return load_halves<__is_same(From, Half)>(reinterpret_cast<const uint16_t*>(from));
  }
}
template <class From>
inline Floats load8(const From* from, Mask which) {
  if constexpr (sizeof(From) == 4) {
    return load(from, which);
  } else {
    return load_halves<__is_same(From, Half)>(reinterpret_cast<const uint16_t*>(from), which);
  }
}

// The first `count` numbers; where `wide`, all eight may be written.
template <class To>
inline void store8(To* to, Floats value, int64_t count, bool wide) {
  if constexpr (sizeof(To) == 4) {
    // a masked store is slow on AMD
    if (wide) return store(to, value);
    alignas(32) float numbers[kLanes];
    store(numbers, value);
    std::memcpy(to, numbers, sizeof(float) * static_cast<size_t>(count));
  } else {
    const __m128i numbers = narrow<__is_same(To, Half)>(value);
    if (wide) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), numbers);
    std::memcpy(to, &numbers, sizeof(To) * static_cast<size_t>(count));
  }
}

// Turns the rows of an 8 x 8 matrix, one per register, into columns.
inline void transpose(Floats (&r)[8]) {
  Floats t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// Calls body(class) for the first class of every eight; the last eight may overlap those before.
template <class Body>
inline void for_eights(int64_t classes, const Body& body) {
  for (int64_t c = 0; c < classes; c += 8) body(std::max<int64_t>(0, std::min(c, classes - 8)));
}

// Stages all pixels but the last pixels % 8, if classes lie next to each other; returns how many.
template <class From>
int64_t gather_pixels(const From* from, int64_t pixel_stride, int64_t classes, int64_t pixels,
                      float* to, int64_t pitch) {
  const int64_t whole = pixels / 8 * 8, count = std::min<int64_t>(classes, 8);
  for (int64_t i = 0; i < whole; i += 8) {
    // With eight more pixels behind these there are eight numbers to read at each of them.
    const bool wide = count == 8 || (pixel_stride > 0 && i + 15 < pixels);
    for_eights(classes, [&](int64_t c) {
      const From* const line = from + i * pixel_stride + c;
      Floats r[8];
      if (wide) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) r[k] = load8(line + k * pixel_stride);
      } else {
        const Mask which = first_lanes(count);
        for (int k = 0; k < 8; ++k) r[k] = load8(line + k * pixel_stride, which);
      }
      transpose(r);
      for (int64_t k = 0; k < count; ++k) store(to + (c + k) * pitch + i, r[k]);
    });
  }
  return whole;
}

// The same in the other direction.
template <class To>
int64_t scatter_pixels(const float* from, int64_t pitch, int64_t classes, int64_t pixels, To* to,
                       int64_t pixel_stride) {
  const int64_t whole = pixels / 8 * 8, count = std::min<int64_t>(classes, 8);
  for (int64_t i = 0; i < whole; i += 8) {
    // What is written too much belongs to the next pixels, and is written again with them.
    const bool wide = count == 8 || (pixel_stride == classes && i + 15 < pixels);
    for_eights(classes, [&](int64_t c) {
      Floats r[8];
      for (int k = 0; k < 8; ++k) r[k] = load(from + (c + (k < count ? k : 0)) * pitch + i);
      transpose(r);
      To* const line = to + i * pixel_stride + c;
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) store8(line + k * pixel_stride, r[k], count, wide);
    });
  }
  return whole;
}

}  // namespace
}  // namespace customloss::cpu
