// The loops of block.h for NEON, which every 64-bit ARM processor has.
#if defined(__AARCH64EL__)
#include <type_traits>
#include <utility>

#include "block.h"
#include "block_impl.h"
#include "registers_neon.h"
#include "registers_neon_f64.h"

#include "exp_f64.h"

#include "blocks_by_hand.h"

namespace customloss::cpu {
const BlockSet kBlocksNeon = {kernels_by_hand<float>(), kernels_by_hand<double>()};
}
#endif
