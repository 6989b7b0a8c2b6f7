// The sums of unweighted sigmoids with targets that are numbers, by hand, in float32.  What the
// compiler makes of the plain loop divides, and computes an exponential of twice the length.
// Included by isa_avx512_blocks.cpp alone.
#pragma once

#include "ahead.h"
#include "block.h"
#include "registers_avx512.h"

namespace customloss::cpu {
namespace {

inline bool is_plain_soft(const Block<float>& block) {
  return block.soft != nullptr && block.weight == nullptr &&
         block.activation == Activation::kSigmoid && block.scale == 1.0f && block.offset == 0.0f;
}

// One register of each sum: at most kBlock / 16 = 64 additions per lane.
struct SoftSums {
  __m512 tp, fp, fn, tn;

  // Spelled out, because an implicit constructor would lack this file's instruction set.
  explicit SoftSums(__m512 zero) : tp(zero), fp(zero), fn(zero), tn(zero) {}

  // The logits `x` with the targets `t` of the lanes in `valid`.
  template <int kVectors>
  inline void add(const __m512 (&x)[kVectors], const __m512 (&t)[kVectors], __mmask16 valid) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 c[kVectors], e[kVectors], p[kVectors], q[kVectors], rest[kVectors];
    CUSTOMLOSS_EACH(c[u] = _mm512_abs_ps(x[u]))
    negative_exp(c, e);
    CUSTOMLOSS_EACH(c[u] = reciprocal_of(_mm512_add_ps(one, e[u])))
    CUSTOMLOSS_EACH(e[u] = _mm512_mul_ps(e[u], c[u]))
    CUSTOMLOSS_EACH(const __mmask16 below = _mm512_movepi32_mask(_mm512_castps_si512(x[u]));
                    p[u] = _mm512_mask_mov_ps(c[u], below, e[u]);
                    q[u] = _mm512_mask_mov_ps(e[u], below, c[u]))
    CUSTOMLOSS_EACH(rest[u] = _mm512_sub_ps(one, t[u]))
    CUSTOMLOSS_EACH(tp = _mm512_mask3_fmadd_ps(t[u], p[u], tp, valid))
    CUSTOMLOSS_EACH(fp = _mm512_mask3_fmadd_ps(rest[u], p[u], fp, valid))
    CUSTOMLOSS_EACH(fn = _mm512_mask3_fmadd_ps(t[u], q[u], fn, valid))
    CUSTOMLOSS_EACH(tn = _mm512_mask3_fmadd_ps(rest[u], q[u], tn, valid))
  }

  void flush(double* sums) const {
    sums[0] += static_cast<double>(_mm512_reduce_add_ps(tp));
    sums[1] += static_cast<double>(_mm512_reduce_add_ps(fp));
    sums[2] += static_cast<double>(_mm512_reduce_add_ps(fn));
    sums[3] += static_cast<double>(_mm512_reduce_add_ps(tn));
  }
};
static_assert(kBlock <= 64 * 16);

// 64 elements at a step; the rest one masked register at a time.
void sum_soft_avx512(const Block<float>& block, double* sums) {
  constexpr int kVectors = 4;
  SoftSums total(_mm512_setzero_ps());
  int64_t i = 0;
  for (; i + 16 * kVectors <= block.size; i += 16 * kVectors) {
    __m512 x[kVectors], t[kVectors];
    fetch_ahead(block.input + i, 64 * kVectors);
    fetch_ahead(block.soft + i, 64 * kVectors);
    CUSTOMLOSS_EACH(x[u] = _mm512_loadu_ps(block.input + i + 16 * u))
    CUSTOMLOSS_EACH(t[u] = _mm512_loadu_ps(block.soft + i + 16 * u))
    total.add(x, t, 0xffff);
  }
  for (; i < block.size; i += 16) {
    const __mmask16 valid = first(block.size - i);
    const __m512 x[1] = {_mm512_maskz_loadu_ps(valid, block.input + i)};
    const __m512 t[1] = {_mm512_maskz_loadu_ps(valid, block.soft + i)};
    total.add(x, t, valid);
  }
  total.flush(sums);
}

}  // namespace
}  // namespace customloss::cpu
