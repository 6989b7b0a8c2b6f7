// The block loops for AVX512, switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#endif
#include "block.h"
#include "block_impl.h"

namespace customloss::cpu {
const InstructionSet kAvx512 = {"avx512", kernels<float>(), kernels<double>()};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
