// The classes of pixels that lie next to each other ([N, C] rows, channels_last), to and from the
// rows of a tile, where a register holds few numbers: kLanes pixels x kLanes classes are transposed
// by transpose(), of transpose_avx2.h or transpose_neon.h, which include this.
#pragma once

#include <algorithm>
#include <type_traits>

#include "tile.h"

namespace customloss::cpu {
namespace {

// A register of numbers from memory; `which` are those that exist.
template <class From>
inline Floats load_line(const From* from) {
  if constexpr (sizeof(From) == 4) {
    return load(from);
  } else {
    return load_halves<__is_same(From, Half)>(reinterpret_cast<const uint16_t*>(from));
  }
}
template <class From>
inline Floats load_line(const From* from, Mask which) {
  if constexpr (sizeof(From) == 4) {
    return load(from, which);
  } else {
    return load_halves<__is_same(From, Half)>(reinterpret_cast<const uint16_t*>(from), which);
  }
}

// The same in the other direction.
template <class To>
inline void store_line(To* to, Floats value) {
  if constexpr (sizeof(To) == 4) {
    store(to, value);
  } else {
    store_halves<__is_same(To, Half)>(reinterpret_cast<uint16_t*>(to), value);
  }
}

// The first `count` numbers; where `wide`, a whole register may be written.
template <class To>
inline void store_line(To* to, Floats value, int64_t count, bool wide) {
  if (wide) return store_line(to, value);
  // a masked store is slow on AMD
  alignas(32) To numbers[kLanes];
  store_line(numbers, value);
  std::memcpy(to, numbers, sizeof(To) * static_cast<size_t>(count));
}

// Calls body(class) for the first class of every kLanes; the last ones may overlap those before.
template <class Body>
inline void for_lanes(int64_t classes, const Body& body) {
  for (int64_t c = 0; c < classes; c += kLanes) {
    body(std::max<int64_t>(0, std::min(c, classes - kLanes)));
  }
}

// Stages all pixels but the last pixels % kLanes, if classes lie next to each other; returns how
// many.
template <class From>
int64_t gather_pixels(const From* from, int64_t pixel_stride, int64_t classes, int64_t pixels,
                      float* to, int64_t pitch) {
  const int64_t whole = pixels / kLanes * kLanes, count = std::min<int64_t>(classes, kLanes);
  for (int64_t i = 0; i < whole; i += kLanes) {
    // With as many pixels behind these there is a whole register of numbers to read at each of
    // them.
    const bool wide = count == kLanes || (pixel_stride > 0 && i + 2 * kLanes - 1 < pixels);
    for_lanes(classes, [&](int64_t c) {
      const From* const line = from + i * pixel_stride + c;
      Floats r[kLanes];
      if (wide) {
#pragma GCC unroll 8
        for (int k = 0; k < kLanes; ++k) r[k] = load_line(line + k * pixel_stride);
      } else {
        const Mask which = first_lanes(count);
        for (int k = 0; k < kLanes; ++k) r[k] = load_line(line + k * pixel_stride, which);
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
  const int64_t whole = pixels / kLanes * kLanes, count = std::min<int64_t>(classes, kLanes);
  for (int64_t i = 0; i < whole; i += kLanes) {
    // What is written too much belongs to the next pixels, and is written again with them.
    const bool wide = count == kLanes || (pixel_stride == classes && i + 2 * kLanes - 1 < pixels);
    for_lanes(classes, [&](int64_t c) {
      Floats r[kLanes];
      for (int k = 0; k < kLanes; ++k) r[k] = load(from + (c + (k < count ? k : 0)) * pitch + i);
      transpose(r);
      To* const line = to + i * pixel_stride + c;
#pragma GCC unroll 8
      for (int k = 0; k < kLanes; ++k) store_line(line + k * pixel_stride, r[k], count, wide);
    });
  }
  return whole;
}

}  // namespace
}  // namespace customloss::cpu
