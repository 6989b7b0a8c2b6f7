// The functions of tile.h with the loops by hand where there are any.  Included by
// isa_*_tiles_f32.cpp after tile_impl.h, registers_*.h and transpose_*.h.
#pragma once

#include "mask.h"
#include "softmax.h"
#include "softmax_gradient.h"
#include "transpose.h"

namespace customloss::cpu {
namespace {

constexpr PixelKernels<float> pixel_kernels_by_hand() {
  PixelKernels<float> all = pixel_kernels<float>();
  all.stage = stage_pixels_by_hand;
  all.unstage = unstage_pixels_by_hand;
  all.headline_sums = headline_softmax_sums;
  all.headline_gradient = headline_softmax_gradient;
  all.most_classes = kMostClasses;
  all.mask_sums = mask_sums;
  all.mask_gradient = mask_gradient;
  return all;
}

}  // namespace
}  // namespace customloss::cpu
