// Bool masks with a log-loss or a focal loss beside the score, by hand: their sums and the gradient
// by the logits (mask_sums and mask_gradient of tile.h).  Included by isa_avx512_tiles_f32.cpp
// alone.
//
// Let s be the probability of the wrong answer, q where the target is 1 and p where it is 0, and y
// its logit, so that s = sigmoid(y).  With e = e^-|x|,
//   log-loss = max(y, 0) + log(1 + e)      focal loss = s^gamma log-loss
// A sum of log(1 + e) is the logarithm of a product. That of eight elements is kept as the product
// less 1, which has all digits where every e is small; so eight of them share one logarithm.
#pragma once

#include "../logarithm.h"
#include "hard_sums_avx512.h"
#include "tile.h"

namespace customloss::cpu {
namespace {

// What a step knows of kVectors registers of elements: the logits' size c = |x|, e = e^-c, the
// larger and the smaller of p and q, and where the target is 1, and where the larger of p
// and q is the wrong one.
template <int kVectors>
struct MaskStep {
  __m512 x[kVectors], c[kVectors], e[kVectors], large[kVectors], small[kVectors];
  __mmask16 target[kVectors], wrong[kVectors];

  inline __attribute__((always_inline)) void load(const Tile<float>& tile, int64_t cls, int64_t at,
                                                  __mmask16 valid) {
    const float* const from = tile.lies + cls * tile.lies_pitch + at;
    const uint8_t* const bytes = tile.hard + cls * tile.hard_pitch + at;
    if (valid == 0xffff) {
      fetch_ahead(bytes, 16 * kVectors, kBytesAhead / 4);
      if (tile.lies != tile.x) fetch_ahead(from, 64 * kVectors);
      CUSTOMLOSS_EACH(x[u] = _mm512_loadu_ps(from + 16 * u);
                      target[u] = nonzero_bytes(bytes + 16 * u))
    } else {
      CUSTOMLOSS_EACH(x[u] = _mm512_maskz_loadu_ps(valid, from + 16 * u);
                      target[u] = nonzero_bytes(bytes + 16 * u, valid))
    }
    CUSTOMLOSS_EACH(c[u] = _mm512_abs_ps(x[u]))
    negative_exp(c, e);
    CUSTOMLOSS_EACH(large[u] = reciprocal_of(_mm512_add_ps(_mm512_set1_ps(1.0f), e[u]));
                    small[u] = _mm512_mul_ps(e[u], large[u]);
                    wrong[u] = static_cast<__mmask16>(~(target[u] ^ negative(x[u]))))
  }

  // What HardSums adds up.
  inline void flip(__m512 (&d)[kVectors]) const {
    CUSTOMLOSS_EACH(d[u] = signed_miss(small[u], x[u]))
  }

  // s, and 1 - s
  inline __m512 rightness(int u) const { return _mm512_mask_mov_ps(large[u], wrong[u], small[u]); }
  inline __m512 wrongness(int u) const { return _mm512_mask_mov_ps(small[u], wrong[u], large[u]); }

  // log(1 + e) of every element
  inline __attribute__((always_inline)) void logarithms(__m512 (&to)[kVectors]) const {
    alignas(64) float log[16 * kVectors];
    CUSTOMLOSS_EACH(_mm512_store_ps(log + 16 * u, e[u]))
#pragma omp simd
    for (int k = 0; k < 16 * kVectors; ++k) log[k] = log1p_of_unit(log[k], 0.0f);
    CUSTOMLOSS_EACH(to[u] = _mm512_load_ps(log + 16 * u))
  }

  // log-loss, given the logarithms
  inline __m512 loss(int u, __m512 logarithm) const {
    return _mm512_mask_add_ps(logarithm, wrong[u], logarithm, c[u]);
  }
};

// s^gamma for gamma = 1, 2, 3 or 4
inline __m512 power(__m512 s, int gamma) {
  __m512 result = s;
  for (int k = 1; k < gamma; ++k) result = _mm512_mul_ps(result, s);
  return result;
}

// The two sums of a log-loss or of a focal loss (kBeside): where the target is 1, and where it is
// 0.
template <unsigned kBeside>
class MaskLosses {
 public:
  explicit MaskLosses(int gamma) : gamma_(gamma) {
    for (int k = 0; k < 2; ++k) sums_[k] = less_one_[k] = _mm512_setzero_ps();
  }

  template <int kVectors>
  inline __attribute__((always_inline)) void add(const MaskStep<kVectors>& step, __mmask16 valid) {
    __mmask16 other[kVectors];
    CUSTOMLOSS_EACH(other[u] = static_cast<__mmask16>(valid & ~step.target[u]))
    if constexpr (kBeside == kFocal) {
      __m512 loss[kVectors];
      step.logarithms(loss);
      CUSTOMLOSS_EACH(loss[u] =
                          _mm512_mul_ps(power(step.wrongness(u), gamma_), step.loss(u, loss[u]));
                      sums_[0] = _mm512_mask_add_ps(sums_[0], step.target[u], sums_[0], loss[u]);
                      sums_[1] = _mm512_mask_add_ps(sums_[1], other[u], sums_[1], loss[u]))
    } else {
      const __m512 one = _mm512_set1_ps(1.0f);
      CUSTOMLOSS_EACH(const __mmask16 miss = static_cast<__mmask16>(step.target[u] & step.wrong[u]);
                      const __mmask16 alarm = static_cast<__mmask16>(other[u] & step.wrong[u]);
                      sums_[0] = _mm512_mask_add_ps(sums_[0], miss, sums_[0], step.c[u]);
                      sums_[1] = _mm512_mask_add_ps(sums_[1], alarm, sums_[1], step.c[u]);
                      less_one_[0] =
                          _mm512_mask3_fmadd_ps(step.e[u], _mm512_add_ps(one, less_one_[0]),
                                                less_one_[0], step.target[u]);
                      less_one_[1] = _mm512_mask3_fmadd_ps(
                          step.e[u], _mm512_add_ps(one, less_one_[1]), less_one_[1], other[u]))
      factors_ += kVectors;
      if (factors_ >= 8) take_logarithms();
    }
  }

  void flush(double* targets, double* others) {
    if (factors_ > 0) take_logarithms();
    *targets += _mm512_reduce_add_ps(sums_[0]);
    *others += _mm512_reduce_add_ps(sums_[1]);
  }

 private:
  inline __attribute__((always_inline)) void take_logarithms() {
    alignas(64) float log[32];
    for (int k = 0; k < 2; ++k) _mm512_store_ps(log + 16 * k, less_one_[k]);
#pragma omp simd
    for (int k = 0; k < 32; ++k) log[k] = log1p_of(log[k]);
    for (int k = 0; k < 2; ++k) {
      sums_[k] = _mm512_add_ps(sums_[k], _mm512_load_ps(log + 16 * k));
      less_one_[k] = _mm512_setzero_ps();
    }
    factors_ = 0;
  }

  __m512 sums_[2], less_one_[2];
  int factors_ = 0;
  const int gamma_;
};

template <unsigned kBeside>
void mask_sums_of(const Tile<float>& tile, double* to, int64_t to_pitch) {
  constexpr int kVectors = 4;
  const int row = row_of(tile.extra, kBeside);
  for (int64_t c = 0; c < tile.classes; ++c) {
    HardSums four(tile.pixels);
    MaskLosses<kBeside> losses(static_cast<int>(tile.focal.gamma));
    int64_t i = 0;
    for (; i + 16 * kVectors <= tile.pixels; i += 16 * kVectors) {
      MaskStep<kVectors> step;
      __m512 d[kVectors];
      step.load(tile, c, i, 0xffff);
      step.flip(d);
      four.add(step.x, d, step.target, 0xffff);
      losses.add(step, 0xffff);
    }
    for (; i < tile.pixels; i += 16) {
      const __mmask16 valid = first(tile.pixels - i);
      MaskStep<1> step;
      __m512 d[1];
      step.load(tile, c, i, valid);
      step.flip(d);
      four.add(step.x, d, step.target, valid);
      losses.add(step, valid);
    }
    double sums[4] = {};
    four.flush(sums);
    for (int k = 0; k < 4; ++k) to[k * to_pitch + c] += sums[k];
    losses.flush(&to[row * to_pitch + c], &to[(row + 1) * to_pitch + c]);
    if (tile.extra & kSupport) {
      to[row_of(tile.extra, kSupport) * to_pitch + c] += static_cast<double>(four.target);
    }
  }
}

// dL/dx = p q u + (target ? -h : k) f, where f is s for a log-loss, and for a focal loss
// s^gamma (gamma (1 - s) log-loss + s); u, h and k are the gradients by the sums of the class.
template <unsigned kBeside>
struct MaskSlopes {
  __m512 u[2], beside[2];  // where the target is 0, and where it is 1
  bool any;
  int gamma;

  MaskSlopes(const Tile<float>& tile, const float* by, int64_t c) {
    const auto at = [&](int row) { return by[row * tile.classes + c]; };
    constexpr int kRow = row_of(kBeside, kBeside);
    u[0] = _mm512_set1_ps(at(1));
    u[1] = _mm512_set1_ps(at(0));
    beside[0] = _mm512_set1_ps(at(kRow + 1));
    beside[1] = _mm512_set1_ps(-at(kRow));
    any = at(0) != 0.0f || at(1) != 0.0f || at(kRow) != 0.0f || at(kRow + 1) != 0.0f;
    gamma = static_cast<int>(tile.focal.gamma);
  }

  template <int kVectors>
  inline __attribute__((always_inline)) void write(const MaskStep<kVectors>& step, float* to,
                                                   __mmask16 valid) const {
    __m512 factor[kVectors];
    if constexpr (kBeside == kFocal) {
      __m512 loss[kVectors];
      const __m512 powers = _mm512_set1_ps(static_cast<float>(gamma));
      step.logarithms(loss);
      CUSTOMLOSS_EACH(const __m512 s = step.wrongness(u); const __m512 r = step.rightness(u);
                      // 0 times an infinite loss is 0, as its limit
                      const __mmask16 some =
                          _mm512_cmp_ps_mask(r, _mm512_setzero_ps(), _CMP_NEQ_UQ);
                      const __m512 steep = _mm512_maskz_mul_ps(some, _mm512_mul_ps(powers, r),
                                                               step.loss(u, loss[u]));
                      factor[u] = _mm512_mul_ps(power(s, gamma), _mm512_add_ps(steep, s)))
    } else {
      CUSTOMLOSS_EACH(factor[u] = step.wrongness(u))
    }
    CUSTOMLOSS_EACH(
        const __m512 slope = _mm512_mul_ps(step.small[u], step.large[u]);
        const __m512 of_score = _mm512_mask_mov_ps(this->u[0], step.target[u], this->u[1]);
        const __m512 of_loss = _mm512_mask_mov_ps(beside[0], step.target[u], beside[1]);
        const __m512 found = _mm512_fmadd_ps(slope, of_score, _mm512_mul_ps(of_loss, factor[u]));
        store(to + 16 * u, found, valid))
  }
};

template <unsigned kBeside>
void mask_gradient_of(const Tile<float>& tile, const float* by, float* out, int64_t out_pitch) {
  constexpr int kVectors = 4;
  for (int64_t c = 0; c < tile.classes; ++c) {
    const MaskSlopes<kBeside> slopes(tile, by, c);
    float* const to = out + c * out_pitch;
    if (!slopes.any) {
      std::fill_n(to, tile.pixels, 0.0f);
      continue;
    }
    int64_t i = 0;
    for (; i + 16 * kVectors <= tile.pixels; i += 16 * kVectors) {
      MaskStep<kVectors> step;
      step.load(tile, c, i, 0xffff);
      slopes.write(step, to + i, 0xffff);
    }
    for (; i < tile.pixels; i += 16) {
      const __mmask16 valid = first(tile.pixels - i);
      MaskStep<1> step;
      step.load(tile, c, i, valid);
      slopes.write(step, to + i, valid);
    }
  }
}

void mask_sums(const Tile<float>& tile, double* to, int64_t to_pitch) {
  tile.extra& kFocal ? mask_sums_of<kFocal>(tile, to, to_pitch)
                     : mask_sums_of<kLogLoss>(tile, to, to_pitch);
}

void mask_gradient(const Tile<float>& tile, const float* by, float* out, int64_t out_pitch) {
  tile.extra& kFocal ? mask_gradient_of<kFocal>(tile, by, out, out_pitch)
                     : mask_gradient_of<kLogLoss>(tile, by, out, out_pitch);
}

}  // namespace
}  // namespace customloss::cpu
