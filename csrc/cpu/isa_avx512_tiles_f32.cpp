// The loops of tile.h in float for AVX-512, which is switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include "target_avx512.h"

#include "block.h"
#include "block_impl.h"
#include "registers_avx512.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"
#include "transpose_avx512.h"

#include "tiles_by_hand.h"

namespace customloss::cpu {
static_assert(kTileRun<float> == kRun<float>);  // not the short one of the baseline

const PixelKernels<float> kTilesF32Avx512 = pixel_kernels_by_hand();
}  // namespace customloss::cpu
#include "target_end.h"
#endif
