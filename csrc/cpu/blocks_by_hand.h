// The functions of block.h with the loops by hand where there are any.  Included by
// isa_*_blocks.cpp after block_impl.h and registers_*.h.
#pragma once

#include "hard.h"
#include "soft.h"

namespace customloss::cpu {
namespace {

template <class T>
void sum_by_hand(const Block<T>& block, double* sums) {
  if (block.headline()) return sum_hard(block, sums);
  if constexpr (sizeof(T) == 4) {
    if (is_plain_soft(block)) return sum_soft(block, sums);
  }
  sum(block, sums);
}

void sum_columns_by_hand(const Block<float>& block, float* sums, int64_t pitch) {
  block.headline() ? sum_columns_hard(block, sums, pitch) : sum_columns(block, sums, pitch);
}

void carry_columns_by_hand(const Fold& fold, float* sums, int64_t pitch) {
  fold.headline ? carry_columns_hard(fold, sums, pitch) : carry_columns(fold, sums, pitch);
}

void flush_columns_by_hand(const Fold& fold, float* sums, int64_t pitch, double* to,
                           int64_t to_pitch) {
  fold.headline ? flush_columns_hard(fold, sums, pitch, to, to_pitch)
                : flush_columns(fold, sums, pitch, to, to_pitch);
}

template <class T>
void gradient_by_hand(const Block<T>& block, Wrt wrt, const Coefficients<T>& g, T* out) {
  if (!block.headline() || wrt != Wrt::kInput || g.per_element) {
    return gradient_block(block, wrt, g, out);
  }
  gradient_hard(block, g, out);
}

template <class T>
constexpr BlockKernels<T> kernels_by_hand() {
  BlockKernels<T> all = kernels<T>();
  all.sum = sum_by_hand<T>;
  all.gradient = gradient_by_hand<T>;
  if constexpr (sizeof(T) == 4) {
    all.sum_columns = sum_columns_by_hand;
    all.carry_columns = carry_columns_by_hand;
    all.flush_columns = flush_columns_by_hand;
    all.gradient_halves = gradient_hard_halves;
  }
  return all;
}

}  // namespace
}  // namespace customloss::cpu
