// Copies between memory and the rows of a tile, by hand where classes lie next to each other, and
// of bools.  gather_pixels() and scatter_pixels() copy as many pixels as fill whole registers; the
// rest is done by tile_fill.h.  Included after it, and after registers_*.h and transpose_*.h.
#pragma once

#include "tile.h"

namespace customloss::cpu {
namespace {

// Calls body<From>() with the type in memory, if it is one of those that are copied by hand.
template <class Body>
inline void with_float(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32: return body.template operator()<float>();
    case Dtype::kBFloat16: return body.template operator()<BFloat16>();
    case Dtype::kFloat16: return body.template operator()<Half>();
    default: return;
  }
}

// A row of bools as 0 and 1.
inline void stage_bools(const uint8_t* from, int64_t size, float* to) {
  const Floats one = floats(1.0f);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, only(nonzero_bytes(from + i), one));
  for (; i < size; ++i) to[i] = from[i] != 0 ? 1.0f : 0.0f;
}

void stage_pixels_by_hand(Dtype dtype, const void* from, int64_t class_stride, int64_t pixel_stride,
                          int64_t classes, int64_t pixels, float* to, int64_t pitch) {
  int64_t done = 0;
  if (dtype == Dtype::kBool && pixel_stride == 1) {
    for (int64_t c = 0; c < classes; ++c) {
      stage_bools(static_cast<const uint8_t*>(from) + c * class_stride, pixels, to + c * pitch);
    }
    return;
  }
  if (class_stride == 1 && pixel_stride != 1 && classes > 1) {
    with_float(dtype, [&]<class From>() {
      done =
          gather_pixels(static_cast<const From*>(from), pixel_stride, classes, pixels, to, pitch);
    });
  }
  const char* const left = static_cast<const char*>(from) + done * pixel_stride * dtype_size(dtype);
  if (done < pixels) {
    stage_pixels<float>(dtype, left, class_stride, pixel_stride, classes, pixels - done, to + done,
                        pitch);
  }
}

void unstage_pixels_by_hand(Dtype dtype, const float* from, int64_t pitch, int64_t classes,
                            int64_t pixels, void* to, int64_t class_stride, int64_t pixel_stride) {
  int64_t done = 0;
  if (class_stride == 1 && pixel_stride != 1 && classes > 1) {
    with_float(dtype, [&]<class To>() {
      done = scatter_pixels(from, pitch, classes, pixels, static_cast<To*>(to), pixel_stride);
    });
  }
  char* const left = static_cast<char*>(to) + done * pixel_stride * dtype_size(dtype);
  if (done < pixels) {
    unstage_pixels<float>(dtype, from + done, pitch, classes, pixels - done, left, class_stride,
                          pixel_stride);
  }
}

}  // namespace
}  // namespace customloss::cpu
