// Bool masks with a log-loss or a focal loss beside the score, by hand: their sums and the gradient
// by the logits (mask_sums and mask_gradient of tile.h).  Included after registers_*.h.
//
// Let s be the probability of the wrong answer, q where the target is 1 and p where it is 0, and y
// its logit, so that s = sigmoid(y).  With e = e^-|x|,
//   log-loss = max(y, 0) + log(1 + e)      focal loss = s^gamma log-loss
// A sum of log(1 + e) is the logarithm of a product. That of eight elements is kept as the product
// less 1, which has all digits where every e is small; so eight of them share one logarithm.
#pragma once

#include "../logarithm.h"
#include "hard_sums.h"
#include "tile.h"

namespace customloss::cpu {
namespace {

// What a step knows of kVectors registers of elements: the logits' size c = |x|, e = e^-c, the
// larger and the smaller of p and q, and where the target is 1, and where the larger of p
// and q is the wrong one.
template <int kVectors>
struct MaskStep {
  Floats x[kVectors], c[kVectors], e[kVectors], large[kVectors], small[kVectors];
  Mask target[kVectors], wrong[kVectors];

  // Lanes that do not exist have x, c and e of 0, so that their logarithm is 0 and no sum of losses
  // sees them.
  inline __attribute__((always_inline)) void load(const Tile<float>& tile, int64_t cls, int64_t at,
                                                  Mask valid) {
    const float* const from = tile.lies + cls * tile.lies_pitch + at;
    const uint8_t* const bytes = tile.hard + cls * tile.hard_pitch + at;
    if constexpr (kVectors > 1) {
      fetch_ahead(bytes, kLanes * kVectors, kBytesAhead / 4);
      if (tile.lies != tile.x) fetch_ahead(from, 4 * kLanes * kVectors);
      CUSTOMLOSS_EACH(x[u] = customloss::cpu::load(from + kLanes * u);
                      target[u] = nonzero_bytes(bytes + kLanes * u))
    } else {
      x[0] = customloss::cpu::load(from, valid);
      target[0] = nonzero_bytes(bytes, valid);
    }
    CUSTOMLOSS_EACH(c[u] = size_of(x[u]))
    negative_exp(c, e);
    if constexpr (kVectors == 1) e[0] = only(valid, e[0]);
    CUSTOMLOSS_EACH(large[u] = reciprocal_of(floats(1.0f) + e[u]); small[u] = e[u] * large[u];
                    wrong[u] = alike(target[u], negative(x[u])))
  }

  // What HardSums adds up.
  inline void flip(Floats (&d)[kVectors]) const { CUSTOMLOSS_EACH(d[u] = against(small[u], x[u])) }

  // 1 - s, and s
  inline Floats rightness(int u) const { return choose(wrong[u], small[u], large[u]); }
  inline Floats wrongness(int u) const { return choose(wrong[u], large[u], small[u]); }

  // log(1 + e) of every element
  inline __attribute__((always_inline)) void logarithms(Floats (&to)[kVectors]) const {
    alignas(64) float log[kLanes * kVectors];
    CUSTOMLOSS_EACH(store(log + kLanes * u, e[u]))
#pragma omp simd
    for (int k = 0; k < kLanes * kVectors; ++k) log[k] = log1p_of_unit(log[k], 0.0f);
    CUSTOMLOSS_EACH(to[u] = customloss::cpu::load(log + kLanes * u))
  }

  // log-loss, given the logarithms
  inline Floats loss(int u, Floats logarithm) const { return add_where(wrong[u], logarithm, c[u]); }
};

// s^gamma for gamma = 1, 2, 3 or 4
inline Floats power(Floats s, int gamma) {
  Floats result = s;
  for (int k = 1; k < gamma; ++k) result = result * s;
  return result;
}

// The two sums of a log-loss or of a focal loss (kBeside): where the target is 1, and where it is
// 0.
template <unsigned kBeside>
class MaskLosses {
 public:
  explicit MaskLosses(int gamma) : gamma_(gamma) {
    for (int k = 0; k < 2; ++k) sums_[k] = less_one_[k] = floats(0.0f);
  }

  template <int kVectors>
  inline __attribute__((always_inline)) void add(const MaskStep<kVectors>& step) {
    if constexpr (kBeside == kFocal) {
      Floats loss[kVectors];
      step.logarithms(loss);
      CUSTOMLOSS_EACH(loss[u] = power(step.wrongness(u), gamma_) * step.loss(u, loss[u]))
      CUSTOMLOSS_EACH(sums_[0] = add_where(step.target[u], sums_[0], loss[u]);
                      sums_[1] = add_elsewhere(step.target[u], sums_[1], loss[u]))
    } else {
      const Floats one = floats(1.0f);
      CUSTOMLOSS_EACH(
          const Floats c = only(step.wrong[u], step.c[u]);
          sums_[0] = add_where(step.target[u], sums_[0], c);
          sums_[1] = add_elsewhere(step.target[u], sums_[1], c);
          less_one_[0] = fused_where(step.target[u], step.e[u], one + less_one_[0], less_one_[0]);
          less_one_[1] =
              fused_elsewhere(step.target[u], step.e[u], one + less_one_[1], less_one_[1]))
      factors_ += kVectors;
      if (factors_ >= 8) take_logarithms();
    }
  }

  void flush(double* targets, double* others) {
    if (factors_ > 0) take_logarithms();
    *targets += total(sums_[0]);
    *others += total(sums_[1]);
  }

 private:
  inline __attribute__((always_inline)) void take_logarithms() {
    alignas(64) float log[2 * kLanes];
    for (int k = 0; k < 2; ++k) store(log + kLanes * k, less_one_[k]);
#pragma omp simd
    for (int k = 0; k < 2 * kLanes; ++k) log[k] = log1p_of(log[k]);
    for (int k = 0; k < 2; ++k) {
      sums_[k] = sums_[k] + load(log + kLanes * k);
      less_one_[k] = floats(0.0f);
    }
    factors_ = 0;
  }

  Floats sums_[2], less_one_[2];
  int factors_ = 0;
  const int gamma_;
};

// Adds the sums of the pixels first .. last-1 of class c.
template <unsigned kBeside>
inline void mask_sums_run(const Tile<float>& tile, int64_t c, int64_t first, int64_t last,
                          double* to, int64_t to_pitch) {
  constexpr int kVectors = kMaskStep;
  const int row = row_of(tile.extra, kBeside);
  HardSums<float> four(last - first);
  MaskLosses<kBeside> losses(static_cast<int>(tile.focal.gamma));
  const auto add = [&]<int kCount>(const MaskStep<kCount>& step) {
    Floats d[kCount];
    step.flip(d);
    four.add(step.x, d, step.target);
    losses.add(step);
  };
  int64_t i = first;
  for (; i + kLanes * kVectors <= last; i += kLanes * kVectors) {
    MaskStep<kVectors> step;
    step.load(tile, c, i, all_lanes());
    add(step);
  }
  for (; i < last; i += kLanes) {
    MaskStep<1> step;
    step.load(tile, c, i, first_lanes(last - i));
    add(step);
  }
  double sums[4] = {};
  four.flush(sums);
  for (int k = 0; k < 4; ++k) to[k * to_pitch + c] += sums[k];
  losses.flush(&to[row * to_pitch + c], &to[(row + 1) * to_pitch + c]);
  if (tile.extra & kSupport) {
    to[row_of(tile.extra, kSupport) * to_pitch + c] += static_cast<double>(four.target);
  }
}

template <unsigned kBeside>
void mask_sums_of(const Tile<float>& tile, double* to, int64_t to_pitch) {
  for (int64_t c = 0; c < tile.classes; ++c) {
    for_short_sums<kLanes>(tile.pixels, [&](int64_t first, int64_t last) {
      mask_sums_run<kBeside>(tile, c, first, last, to, to_pitch);
    });
  }
}

// dL/dx = p q u + (target ? -h : k) f, where f is s for a log-loss, and for a focal loss
// s^gamma (gamma (1 - s) log-loss + s); u, h and k are the gradients by the sums of the class.
template <unsigned kBeside>
struct MaskSlopes {
  Floats u[2], beside[2];  // where the target is 0, and where it is 1
  bool any;
  int gamma;

  MaskSlopes(const Tile<float>& tile, const float* by, int64_t c) {
    const auto at = [&](int row) { return by[row * tile.classes + c]; };
    constexpr int kRow = row_of(kBeside, kBeside);
    u[0] = floats(at(1));
    u[1] = floats(at(0));
    beside[0] = floats(at(kRow + 1));
    beside[1] = floats(-at(kRow));
    any = at(0) != 0.0f || at(1) != 0.0f || at(kRow) != 0.0f || at(kRow + 1) != 0.0f;
    gamma = static_cast<int>(tile.focal.gamma);
  }

  template <int kVectors>
  inline __attribute__((always_inline)) void write(const MaskStep<kVectors>& step, float* to,
                                                   Mask valid) const {
    Floats factor[kVectors];
    if constexpr (kBeside == kFocal) {
      Floats loss[kVectors];
      const Floats powers = floats(static_cast<float>(gamma));
      step.logarithms(loss);
      CUSTOMLOSS_EACH(const Floats s = step.wrongness(u); const Floats r = step.rightness(u);
                      // 0 times an infinite loss is 0, as its limit
                      const Floats steep =
                          only(unequal(r, floats(0.0f)), powers * r * step.loss(u, loss[u]));
                      factor[u] = power(s, gamma) * (steep + s))
    } else {
      CUSTOMLOSS_EACH(factor[u] = step.wrongness(u))
    }
    CUSTOMLOSS_EACH(const Floats slope = step.small[u] * step.large[u];
                    const Floats of_score = choose(step.target[u], this->u[1], this->u[0]);
                    const Floats of_loss = choose(step.target[u], beside[1], beside[0]);
                    store(to + kLanes * u, fused(slope, of_score, of_loss * factor[u]), valid))
  }
};

template <unsigned kBeside>
void mask_gradient_of(const Tile<float>& tile, const float* by, float* out, int64_t out_pitch) {
  constexpr int kVectors = kMaskStep;
  for (int64_t c = 0; c < tile.classes; ++c) {
    const MaskSlopes<kBeside> slopes(tile, by, c);
    float* const to = out + c * out_pitch;
    if (!slopes.any) {
      std::fill_n(to, tile.pixels, 0.0f);
      continue;
    }
    int64_t i = 0;
    for (; i + kLanes * kVectors <= tile.pixels; i += kLanes * kVectors) {
      MaskStep<kVectors> step;
      step.load(tile, c, i, all_lanes());
      slopes.write(step, to + i, all_lanes());
    }
    for (; i < tile.pixels; i += kLanes) {
      const Mask valid = first_lanes(tile.pixels - i);
      MaskStep<1> step;
      step.load(tile, c, i, valid);
      slopes.write(step, to + i, valid);
    }
  }
}

void mask_sums(const Tile<float>& tile, double* to, int64_t to_pitch) {
  (tile.extra & kFocal) != 0 ? mask_sums_of<kFocal>(tile, to, to_pitch)
                             : mask_sums_of<kLogLoss>(tile, to, to_pitch);
}

void mask_gradient(const Tile<float>& tile, const float* by, float* out, int64_t out_pitch) {
  (tile.extra & kFocal) != 0 ? mask_gradient_of<kFocal>(tile, by, out, out_pitch)
                             : mask_gradient_of<kLogLoss>(tile, by, out, out_pitch);
}

}  // namespace
}  // namespace customloss::cpu
