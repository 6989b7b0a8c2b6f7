// The loops of tile.h in float for AVX2, which is switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include "target_avx2.h"

#include "block.h"
#include "block_impl.h"
#include "registers_avx2.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"

#include "tiles_by_hand.h"
#include "transpose_avx2.h"

namespace customloss::cpu {
namespace {

static_assert(kTileRun<float> == kRun<float>);  // not the short one of the baseline

constexpr PixelKernels<float> pixel_kernels_avx2() {
  PixelKernels<float> all = pixel_kernels_by_hand();
  all.stage = stage_pixels_avx2;
  all.unstage = unstage_pixels_avx2;
  return all;
}

}  // namespace

const PixelKernels<float> kTilesF32Avx2 = pixel_kernels_avx2();
}  // namespace customloss::cpu
#include "target_end.h"
#endif
