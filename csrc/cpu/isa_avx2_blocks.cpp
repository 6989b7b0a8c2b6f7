// The loops of block.h for AVX2, which is switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include "target_avx2.h"

#include "block.h"
#include "block_impl.h"
#include "registers_avx2.h"
#include "registers_avx2_f64.h"

#include "exp_f64.h"

#include "blocks_by_hand.h"

namespace customloss::cpu {
const BlockSet kBlocksAvx2 = {kernels_by_hand<float>(), kernels_by_hand<double>()};
}  // namespace customloss::cpu
#include "target_end.h"
#endif
