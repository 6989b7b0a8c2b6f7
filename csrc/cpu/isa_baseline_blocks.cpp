// The loops of block.h for the compiler's default target.
#include <type_traits>
#include <utility>

#include "block.h"
#include "block_impl.h"

namespace customloss::cpu {
const BlockSet kBlocksBaseline = {kernels<float>(), kernels<double>()};
}
