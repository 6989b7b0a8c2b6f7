// The loops of tile.h in float for NEON.  Those in double are the baseline's, which has NEON there.
#if defined(__AARCH64EL__)
#include <type_traits>
#include <utility>

#include "block.h"
#include "block_impl.h"
#include "registers_neon.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"
#include "transpose_neon.h"

#include "tiles_by_hand.h"

namespace customloss::cpu {
const PixelKernels<float> kTilesF32Neon = pixel_kernels_by_hand();
}
#endif
