// The loops of tile.h for the compiler's default target.
#include <type_traits>
#include <utility>

#include "block.h"
#include "block_impl.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"

namespace customloss::cpu {
const TileSet kTilesBaseline = {pixel_kernels<float>(), pixel_kernels<double>()};
}
