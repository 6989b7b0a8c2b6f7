// What the sums of a softmax and their gradient have in common, by hand: the pixels of a step, and
// the exponentials of one class after the other.  Included by softmax_avx512.h and
// softmax_gradient_avx512.h.
#pragma once

#include "registers_avx512.h"
#include "tile.h"

namespace customloss::cpu {
namespace {

constexpr int64_t kMostClasses = 128;  // the exponentials and sums of all classes lie on the stack

// The logits of class c from pixel `at` on.
inline __m512 logits_of(const Tile<float>& tile, int64_t c, int64_t at, __mmask16 valid) {
  const float* from = tile.lies + c * tile.lies_pitch + at;
  return valid == 0xffff ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(valid, from);
}

// kVectors registers of pixels.
template <int kVectors, bool kWeighted>
struct SoftmaxStep {
  __m512i y[kVectors];       // class numbers, -1 where nothing counts
  __mmask16 live[kVectors];  // the pixels that count
  __m512 weight[kVectors];
  __m512 most[kVectors];  // the largest logit
  __m512 rest[kVectors];  // the sum of e without that of the first largest class
  __mmask16 claimed[kVectors];
  // of the class of the last call of exponentials(): where it is a largest one, and the first
  __mmask16 largest[kVectors], first[kVectors];

  // Reads the pixels from `at` on; the bits of `valid` are those that exist.
  inline __attribute__((always_inline)) void load(const Tile<float>& tile, int64_t at,
                                                  const __mmask16 (&valid)[kVectors]) {
    const __m512 zero = _mm512_setzero_ps();
    CUSTOMLOSS_EACH(
        y[u] = _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), valid[u], tile.labels + at + 16 * u))
    CUSTOMLOSS_EACH(live[u] = _mm512_cmpge_epi32_mask(y[u], _mm512_setzero_si512()))
    if constexpr (kWeighted) {
      const float* const weights = tile.rows + kLive * tile.pitch + at;
      CUSTOMLOSS_EACH(weight[u] = _mm512_maskz_loadu_ps(live[u], weights + 16 * u);
                      live[u] = _mm512_mask_cmp_ps_mask(live[u], weight[u], zero, _CMP_NEQ_UQ))
    }
    if (tile.lies != tile.x) {
      for (int64_t c = 0; c < tile.classes; ++c) {
        fetch_ahead(tile.lies + c * tile.lies_pitch + at, 64 * kVectors, kBytesAhead / 2);
      }
    }
    CUSTOMLOSS_EACH(most[u] = logits_of(tile, 0, at + 16 * u, valid[u]))
    for (int64_t c = 1; c < tile.classes; ++c) {
      CUSTOMLOSS_EACH(most[u] = _mm512_max_ps(logits_of(tile, c, at + 16 * u, valid[u]), most[u]))
    }
    CUSTOMLOSS_EACH(rest[u] = zero; claimed[u] = 0)
  }

  // Writes e of class c; `below` is how far its logits are below the largest.
  inline __attribute__((always_inline)) void exponentials(const Tile<float>& tile, int64_t c,
                                                          int64_t at,
                                                          const __mmask16 (&valid)[kVectors],
                                                          float* to, __m512 (&below)[kVectors]) {
    __m512 e[kVectors];
    CUSTOMLOSS_EACH(below[u] = _mm512_sub_ps(most[u], logits_of(tile, c, at + 16 * u, valid[u])))
    negative_exp(below, e);
    CUSTOMLOSS_EACH(_mm512_store_ps(to + 16 * u, e[u]))
    CUSTOMLOSS_EACH(
        largest[u] = _mm512_cmp_ps_mask(below[u], _mm512_setzero_ps(), _CMP_EQ_OQ);
        first[u] = static_cast<__mmask16>(largest[u] & ~claimed[u]);
        claimed[u] = static_cast<__mmask16>(claimed[u] | largest[u]);
        rest[u] = _mm512_mask_add_ps(rest[u], static_cast<__mmask16>(~first[u]), rest[u], e[u]))
  }
};

// Calls body(at, valid) for the pixels of a tile: two registers of them at a time, and for the rest
// one that may be part empty.
template <class Body>
inline void for_registers(int64_t pixels, const Body& body) {
  int64_t i = 0;
  for (; i + 32 <= pixels; i += 32) {
    const __mmask16 all[2] = {0xffff, 0xffff};
    body(i, all);
  }
  for (; i < pixels; i += 16) {
    const __mmask16 some[1] = {first(pixels - i)};
    body(i, some);
  }
}

}  // namespace
}  // namespace customloss::cpu
