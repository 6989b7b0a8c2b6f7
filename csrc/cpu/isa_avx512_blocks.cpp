// The loops of block.h for AVX-512, which is switched on for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#include "target_avx512.h"

#include "block.h"
#include "block_impl.h"
#include "hard_avx512.h"
#include "soft_avx512.h"

namespace customloss::cpu {
namespace {

void sum_avx512(const Block<float>& block, double* sums) {
  if (block.headline) return sum_hard_avx512(block, sums);
  is_plain_soft(block) ? sum_soft_avx512(block, sums) : sum(block, sums);
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
  all.sums_halves = true;
  return all;
}

}  // namespace

const BlockSet kBlocksAvx512 = {kernels_avx512(), kernels<double>()};
}  // namespace customloss::cpu
#include "target_end.h"
#endif
