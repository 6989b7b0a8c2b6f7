// Switches AVX2 on for the rest of the file that includes it, up to target_end.h.  The standard
// library is included first, so that its functions stay what they are in other files.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// Says that AVX2, FMA and F16C are there.  __AVX2__ does not: GCC 12 leaves it as it was before the
// pragma.
#define CUSTOMLOSS_AVX2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
