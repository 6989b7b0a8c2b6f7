// The gradient of a softmax of class numbers by its logits, by hand (headline_gradient of tile.h):
// the plain loops go over the rows of a tile eight times, this one twice.  Included by
// isa_avx512_tiles_f32.cpp alone.
//
// Of a pixel of weight w, u_c and h_c are dL/dp_c and -dL/d(log p_c) at weight 1. Each is one of
// two numbers, that of the true class and that of the others, which are made once per tile:
//   dL/dx_c = w [ p_c ((u_c - shift) - dot) + p_c (slope - h_c) - q_c h_c ]
//   dot = sum of p_c (u_c - shift)     slope = sum of h_c     shift = u of a largest class
#pragma once

#include "softmax_step_avx512.h"

namespace customloss::cpu {
namespace {

template <bool kLogs, bool kWeighted>
class SoftmaxGradient {
 public:
  SoftmaxGradient(const Tile<float>& tile, const float* by, float* out, int64_t out_pitch)
      : tile_(tile), out_(out), out_pitch_(out_pitch) {
    constexpr unsigned kExtra = kLogs ? unsigned{kLogLoss} : 0u;
    for (int64_t c = 0; c < tile.classes; ++c) {
      float own[rows_of(kExtra)];
      for (int row = 0; row < rows_of(kExtra); ++row) own[row] = by[row * tile.classes + c];
      const auto slopes_of = [&](bool is_true) {
        return slopes<Activation::kSoftmax, kExtra>(
            Outcome<float>(0.0f, 0.0f), hard_target(tile.smoothing, is_true), tile.focal, own);
      };
      const Slopes<float> is_true = slopes_of(true), is_other = slopes_of(false);
      u_[c][0] = is_other.u;
      u_[c][1] = is_true.u;
      h_[c][0] = is_other.h;
      h_[c][1] = is_true.h;
    }
  }

  // The gradient of kVectors registers of pixels from `at` on; the bits of `valid` are those that
  // exist.
  template <int kVectors>
  inline __attribute__((always_inline)) void write(int64_t at,
                                                   const __mmask16 (&valid)[kVectors]) const {
    constexpr int kPixels = 16 * kVectors;
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    alignas(64) float e_of[kMostClasses][kPixels];
    __m512 whole[kVectors], inverse[kVectors], shift[kVectors], slope[kVectors], dot[kVectors];
    SoftmaxStep<kVectors, kWeighted> step;
    step.load(tile_, at, valid);
    const auto& y = step.y;
    const auto& live = step.live;
    const auto& weight = step.weight;
    const auto& rest = step.rest;
    CUSTOMLOSS_EACH(dot[u] = shift[u] = slope[u] = zero)
    for (int64_t c = 0; c < tile_.classes; ++c) {
      __m512 below[kVectors];
      step.exponentials(tile_, c, at, valid, e_of[c], below);
      CUSTOMLOSS_EACH(shift[u] =
                          _mm512_mask_mov_ps(shift[u], step.largest[u], pick(u_[c], y[u], c));
                      if constexpr (kLogs) slope[u] = _mm512_add_ps(slope[u], pick(h_[c], y[u], c)))
    }
    CUSTOMLOSS_EACH(whole[u] = _mm512_add_ps(one, rest[u]); inverse[u] = reciprocal_of(whole[u]))
    for (int64_t c = 0; c < tile_.classes; ++c) {
      CUSTOMLOSS_EACH(dot[u] =
                          _mm512_fmadd_ps(_mm512_load_ps(e_of[c] + 16 * u),
                                          _mm512_sub_ps(pick(u_[c], y[u], c), shift[u]), dot[u]))
    }
    CUSTOMLOSS_EACH(dot[u] = _mm512_mul_ps(dot[u], inverse[u]))
    for (int64_t c = 0; c < tile_.classes; ++c) {
      float* const to = out_ + c * out_pitch_ + at;
      CUSTOMLOSS_EACH(
          const __m512 e = _mm512_load_ps(e_of[c] + 16 * u);
          const __m512 p = _mm512_mul_ps(e, inverse[u]);
          const __m512 own = _mm512_sub_ps(pick(u_[c], y[u], c), shift[u]);
          __m512 found = _mm512_mul_ps(p, _mm512_sub_ps(own, dot[u])); if constexpr (kLogs) {
            const __m512 h = pick(h_[c], y[u], c);
            const __mmask16 largest = _mm512_cmp_ps_mask(e, one, _CMP_EQ_OQ);
            const __m512 q = _mm512_mul_ps(
                _mm512_mask_mov_ps(_mm512_sub_ps(whole[u], e), largest, rest[u]), inverse[u]);
            found = _mm512_fmadd_ps(p, _mm512_sub_ps(slope[u], h), found);
            found = _mm512_fnmadd_ps(q, h, found);
          } if constexpr (kWeighted) found = _mm512_mul_ps(weight[u], found);
          found = _mm512_maskz_mov_ps(live[u], found); store(to + 16 * u, found, valid[u]))
    }
  }

 private:
  // The number of the true class where that is c, else the other one.
  static inline __m512 pick(const float (&of)[2], __m512i y, int64_t c) {
    const __mmask16 is_true =
        _mm512_cmpeq_epi32_mask(y, _mm512_set1_epi32(static_cast<int32_t>(c)));
    return _mm512_mask_mov_ps(_mm512_set1_ps(of[0]), is_true, _mm512_set1_ps(of[1]));
  }

  const Tile<float>& tile_;
  float* const out_;
  const int64_t out_pitch_;
  float u_[kMostClasses][2], h_[kMostClasses][2];
};

template <bool kLogs, bool kWeighted>
void softmax_gradient_by_hand(const Tile<float>& tile, const float* by, float* out,
                              int64_t out_pitch) {
  const SoftmaxGradient<kLogs, kWeighted> gradient(tile, by, out, out_pitch);
  for_registers(tile.pixels, [&](int64_t at, const auto& valid) { gradient.write(at, valid); });
}

void headline_softmax_gradient(const Tile<float>& tile, bool weighted, const float* by, float* out,
                               int64_t out_pitch) {
  if (tile.extra & kLogLoss) {
    return weighted ? softmax_gradient_by_hand<true, true>(tile, by, out, out_pitch)
                    : softmax_gradient_by_hand<true, false>(tile, by, out, out_pitch);
  }
  weighted ? softmax_gradient_by_hand<false, true>(tile, by, out, out_pitch)
           : softmax_gradient_by_hand<false, false>(tile, by, out, out_pitch);
}

}  // namespace
}  // namespace customloss::cpu
