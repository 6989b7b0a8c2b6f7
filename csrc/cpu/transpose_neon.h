// The classes of pixels that lie next to each other ([N, C] rows, channels_last), to and from the
// rows of a tile: 4 pixels x 4 classes are transposed in registers.  Included by
// isa_neon_tiles_f32.cpp alone.
#pragma once

#include "registers_neon.h"

namespace customloss::cpu {
namespace {

// Turns the rows of a 4 x 4 matrix, one per register, into columns.
inline void transpose(Floats (&r)[4]) {
  const float32x4x2_t upper = vtrnq_f32(r[0], r[1]), lower = vtrnq_f32(r[2], r[3]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[i] = vcombine_f32(vget_low_f32(upper.val[i]), vget_low_f32(lower.val[i]));
    r[i + 2] = vcombine_f32(vget_high_f32(upper.val[i]), vget_high_f32(lower.val[i]));
  }
}

}  // namespace
}  // namespace customloss::cpu

#include "transpose_square.h"
