// The loops of tile.h in double for the compiler's default target.
#include <type_traits>
#include <utility>

#include "block.h"
#include "block_impl.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"

namespace customloss::cpu {
const PixelKernels<double> kTilesF64Baseline = pixel_kernels<double>();
}
