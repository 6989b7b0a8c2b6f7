// The functions of tile.h with the loops by hand where there are any.  Included by
// isa_*_tiles_f32.cpp after tile_impl.h and registers_*.h.
#pragma once

#include "mask.h"
#include "softmax.h"
#include "softmax_gradient.h"

namespace customloss::cpu {
namespace {

constexpr PixelKernels<float> pixel_kernels_by_hand() {
  PixelKernels<float> all = pixel_kernels<float>();
  all.headline_sums = headline_softmax_sums;
  all.headline_gradient = headline_softmax_gradient;
  all.most_classes = kMostClasses;
  all.mask_sums = mask_sums;
  all.mask_gradient = mask_gradient;
  return all;
}

}  // namespace
}  // namespace customloss::cpu
