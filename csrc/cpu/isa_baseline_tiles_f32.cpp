// The loops of tile.h in float for the compiler's default target.
#include <type_traits>
#include <utility>

#include "block.h"
#include "block_impl.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"

namespace customloss::cpu {
const PixelKernels<float> kTilesF32Baseline = pixel_kernels<float>();
}
