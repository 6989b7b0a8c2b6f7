// The loops of block.h and tile.h for AVX-512, which is switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(                                                                  \
    __attribute__((                                                                            \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,popcnt,avx2,fma,f16c,bmi,bmi2"))), \
    apply_to = function)
#else
// GCC warns falsely of its own intrinsics (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,popcnt,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#endif
#include "block.h"
#include "block_impl.h"
#include "hard_avx512.h"
#include "softmax_avx512.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"
#include "transpose_avx512.h"

namespace customloss::cpu {
namespace {

void sum_avx512(const Block<float>& block, double* sums) {
  block.headline ? sum_hard_avx512(block, sums) : sum(block, sums);
}

void sum_columns_avx512(const Block<float>& block, float* sums, int64_t pitch) {
  block.headline ? sum_columns_hard_avx512(block, sums, pitch) : sum_columns(block, sums, pitch);
}

void carry_columns_avx512(const Fold& fold, float* sums, int64_t pitch) {
  fold.headline ? carry_columns_hard_avx512(fold, sums, pitch) : carry_columns(fold, sums, pitch);
}

void flush_columns_avx512(const Fold& fold, float* sums, int64_t pitch, double* to,
                          int64_t to_pitch) {
  fold.headline ? flush_columns_hard_avx512(fold, sums, pitch, to, to_pitch)
                : flush_columns(fold, sums, pitch, to, to_pitch);
}

constexpr BlockKernels<float> kernels_avx512() {
  BlockKernels<float> all = kernels<float>();
  all.sum = sum_avx512;
  all.sum_columns = sum_columns_avx512;
  all.carry_columns = carry_columns_avx512;
  all.flush_columns = flush_columns_avx512;
  all.sums_bf16 = true;
  return all;
}

constexpr PixelKernels<float> pixel_kernels_avx512() {
  PixelKernels<float> all = pixel_kernels<float>();
  all.stage = stage_pixels_avx512;
  all.unstage = unstage_pixels_avx512;
  all.headline_sums = headline_softmax_sums;
  all.most_classes = kMostClasses;
  return all;
}

}  // namespace

const InstructionSet kAvx512 = {"avx512", kernels_avx512(), kernels<double>(),
                                pixel_kernels_avx512(), pixel_kernels<double>()};
}  // namespace customloss::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
