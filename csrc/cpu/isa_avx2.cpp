// The loops of block.h and tile.h for AVX2, which is switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
#include "block.h"
#include "block_impl.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"

namespace customloss::cpu {
const InstructionSet kAvx2 = {"avx2", kernels<float>(), kernels<double>(), pixel_kernels<float>(),
                              pixel_kernels<double>()};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
