// The headline loop by hand: the sums of headline blocks (block.h), unweighted sigmoids with bool
// targets, in float32.  What the compiler makes of the plain loops reaches half of the speed of the
// memory.  Included by isa_avx512_blocks.cpp alone.
#pragma once

#include "block.h"
#include "hard_sums_avx512.h"

namespace customloss::cpu {
namespace {

// The logits of a block, 16 at a time: float32, or half precision that nobody has staged.
struct Floats {
  const float* from;
  static constexpr int64_t kSize = 4;

  explicit Floats(const Block<float>& block) : from(block.input) {}
  inline __m512 load(int64_t i) const { return _mm512_loadu_ps(from + i); }
  inline __m512 load(int64_t i, __mmask16 valid) const {
    return _mm512_maskz_loadu_ps(valid, from + i);
  }
};

template <bool kFloat16>
struct Halves {
  const uint16_t* from;
  static constexpr int64_t kSize = 2;

  explicit Halves(const Block<float>& block) : from(block.halves) {}
  static inline __m512 widen(__m256i halves) {
    return kFloat16 ? widen_f16(halves) : widen_bf16(halves);
  }
  inline __m512 load(int64_t i) const {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
  }
  inline __m512 load(int64_t i, __mmask16 valid) const {
    return widen(_mm256_maskz_loadu_epi16(valid, from + i));
  }
};

// 64 elements at a step; the rest one masked register at a time.
template <class Logits>
void sum_hard_avx512(const Logits logits, const Block<float>& block, double* sums) {
  constexpr int kVectors = 4;
  HardSums total(block.size);
  int64_t i = 0;
  for (; i + 16 * kVectors <= block.size; i += 16 * kVectors) {
    __m512 x[kVectors];
    __mmask16 m[kVectors];
    fetch_ahead(block.hard + i, 16 * kVectors, kBytesAhead / 4);
    fetch_ahead(logits.from + i, 16 * kVectors * Logits::kSize, kBytesAhead / 4 * Logits::kSize);
    CUSTOMLOSS_EACH(x[u] = logits.load(i + 16 * u))
    CUSTOMLOSS_EACH(m[u] = nonzero_bytes(block.hard + i + 16 * u))
    __m512 d[kVectors];
    signed_misses(x, d);
    total.add(x, d, m, 0xffff);
  }
  for (; i < block.size; i += 16) {
    const __mmask16 valid = first(block.size - i);
    const __m512 x[1] = {logits.load(i, valid)};
    const __mmask16 m[1] = {nonzero_bytes(block.hard + i, valid)};
    __m512 d[1];
    signed_misses(x, d);
    total.add(x, d, m, valid);
  }
  total.flush(sums);
}

void sum_hard_avx512(const Block<float>& block, double* sums) {
  if (block.halves == nullptr) return sum_hard_avx512(Floats(block), block, sums);
  block.float16 ? sum_hard_avx512(Halves<true>(block), block, sums)
                : sum_hard_avx512(Halves<false>(block), block, sums);
}

// Every column has the sums of d for targets 1 and 0, and one integer with three counts of 10 bits
// (targets 1, x < 0, both), so at most 1023 additions between flushes.
constexpr int kCountBits = 10;
static_assert(kColumnAdds < (1 << kCountBits));

template <int kVectors>
inline void add_columns(const __m512 (&x)[kVectors], const __mmask16 (&m)[kVectors],
                        __mmask16 valid, float* sums, int64_t pitch) {
  const __m512i one = _mm512_set1_epi32(1), two = _mm512_slli_epi32(one, kCountBits),
                three = _mm512_slli_epi32(two, kCountBits);
  __m512 d[kVectors];
  signed_misses(x, d);
#pragma GCC unroll 8
  for (int u = 0; u < kVectors; ++u) {
    float* own = sums + 16 * u;
    const __m512 positives = _mm512_loadu_ps(own), negatives = _mm512_loadu_ps(own + pitch);
    __m512i counts = _mm512_loadu_si512(own + 2 * pitch);
    const __mmask16 n = static_cast<__mmask16>(valid & ~m[u]), below = negative(x[u]);
    counts = _mm512_mask_add_epi32(counts, m[u], counts, one);
    counts = _mm512_mask_add_epi32(counts, below, counts, two);
    counts = _mm512_mask_add_epi32(counts, m[u] & below, counts, three);
    _mm512_storeu_ps(own, _mm512_mask_add_ps(positives, m[u], positives, d[u]));
    _mm512_storeu_ps(own + pitch, _mm512_mask_add_ps(negatives, n, negatives, d[u]));
    _mm512_storeu_si512(own + 2 * pitch, counts);
  }
}

void sum_columns_hard_avx512(const Block<float>& block, float* sums, int64_t pitch) {
  constexpr int kVectors = 4;
  int64_t i = 0;
  for (; i + 16 * kVectors <= block.size; i += 16 * kVectors) {
    __m512 x[kVectors];
    __mmask16 m[kVectors];
    fetch_ahead(block.input + i, 64 * kVectors);
    fetch_ahead(block.hard + i, 16 * kVectors, kBytesAhead / 4);
    CUSTOMLOSS_EACH(x[u] = _mm512_loadu_ps(block.input + i + 16 * u))
    CUSTOMLOSS_EACH(m[u] = nonzero_bytes(block.hard + i + 16 * u))
    add_columns(x, m, 0xffff, sums + i, pitch);
  }
  for (; i < block.size; i += 16) {
    const __mmask16 valid = first(block.size - i);
    const __m512 x[1] = {_mm512_maskz_loadu_ps(valid, block.input + i)};
    const __mmask16 m[1] = {nonzero_bytes(block.hard + i, valid)};
    add_columns(x, m, valid, sums + i, pitch);
  }
}

void carry_columns_hard_avx512(const Fold& fold, float* sums, int64_t pitch) {
  carry(sums, sums + 4 * pitch, fold.rows * fold.columns);
  carry(sums + pitch, sums + 5 * pitch, fold.rows * fold.columns);
}

void flush_columns_hard_avx512(const Fold& fold, float* sums, int64_t pitch, double* to,
                               int64_t to_pitch) {
  constexpr int32_t kMask = (1 << kCountBits) - 1;
  carry_columns_hard_avx512(fold, sums, pitch);
  for (int64_t f = 0; f < fold.rows; ++f) {
    for (int64_t c = 0; c < fold.columns; ++c) {
      const int64_t i = f * fold.columns + c;
      const double p = sums[4 * pitch + i], q = sums[5 * pitch + i];
      const int32_t counts = bit_cast<int32_t>(sums[2 * pitch + i]);
      const int32_t target = counts & kMask, below = (counts >> kCountBits) & kMask;
      const int32_t target_below = counts >> (2 * kCountBits);
      to[c] += (target - target_below) + p;
      to[to_pitch + c] += (fold.adds[f] - target - (below - target_below)) + q;
      to[2 * to_pitch + c] += target_below - p;
      to[3 * to_pitch + c] += (below - target_below) - q;
    }
  }
}

}  // namespace
}  // namespace customloss::cpu
