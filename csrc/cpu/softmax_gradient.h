// The gradient of a softmax of class numbers by its logits, by hand (headline_gradient of tile.h):
// the plain loops go over the rows of a tile eight times, this one twice.  Included
// after registers_*.h.
//
// Of a pixel of weight w, u_c and h_c are dL/dp_c and -dL/d(log p_c) at weight 1. Each is one of
// two numbers, that of the true class and that of the others, which are made once per tile:
//   dL/dx_c = w [ p_c ((u_c - shift) - dot) + p_c (slope - h_c) - q_c h_c ]
//   dot = sum of p_c (u_c - shift)     slope = sum of h_c     shift = u of a largest class
// A focal loss adds to the h of the true class its gradient times
//   q^gamma + gamma q^(gamma - 1) p (-log p)
#pragma once

#include "softmax_step.h"

namespace customloss::cpu {
namespace {

template <bool kLogs, bool kFocals, bool kWeighted, int kFew>
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
      if constexpr (kFocals) focal_[c] = by[row_of(tile.extra, kFocal) * tile.classes + c];
    }
  }

  // The gradient of kVectors registers of pixels from `at` on; `valid` are those that exist.
  template <int kVectors>
  inline __attribute__((always_inline)) void write(int64_t at,
                                                   const Mask (&valid)[kVectors]) const {
    constexpr int kPixels = kLanes * kVectors;
    const Floats one = floats(1.0f);
    alignas(64) float e_of[kMostClasses][kPixels];
    Floats whole[kVectors], inverse[kVectors], shift[kVectors], slope[kVectors], dot[kVectors];
    SoftmaxStep<kVectors, kWeighted, kFew> step;
    step.load(tile_, at, valid);
    const auto& y = step.y;
    CUSTOMLOSS_EACH(dot[u] = shift[u] = slope[u] = floats(0.0f))
    step.template exponentials<kFocals, false>(tile_, at, valid, e_of, [&](int64_t c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      CUSTOMLOSS_EACH(shift[u] =
                          choose(equal(step.leader[u], cls), pick(u_[c], y[u], cls), shift[u]))
      if constexpr (kLogs) CUSTOMLOSS_EACH(slope[u] = slope[u] + pick(h_[c], y[u], cls))
    });
    CUSTOMLOSS_EACH(whole[u] = one + step.rest[u]; inverse[u] = reciprocal_of(whole[u]))
    for_classes<kFew>(tile_.classes, [&](int64_t c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      CUSTOMLOSS_EACH(
          dot[u] = fused(load(e_of[c] + kLanes * u), pick(u_[c], y[u], cls) - shift[u], dot[u]))
    });
    CUSTOMLOSS_EACH(dot[u] = dot[u] * inverse[u])
    Floats focal[kVectors];  // what a focal loss adds to the h of the true class
    if constexpr (kFocals) {
      focal_slopes(step, inverse, focal);
      CUSTOMLOSS_EACH(slope[u] = slope[u] + focal[u])
    }
    for_classes<kFew>(tile_.classes, [&](int64_t c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      float* const to = out_ + c * out_pitch_ + at;
      Floats e[kVectors], p[kVectors], found[kVectors];
      CUSTOMLOSS_EACH(e[u] = load(e_of[c] + kLanes * u))
      CUSTOMLOSS_EACH(p[u] = e[u] * inverse[u])
      CUSTOMLOSS_EACH(found[u] = p[u] * (pick(u_[c], y[u], cls) - shift[u] - dot[u]))
      if constexpr (kLogs || kFocals) {
        Floats h[kVectors], q[kVectors];
        CUSTOMLOSS_EACH(h[u] = pick(h_[c], y[u], cls))
        if constexpr (kFocals) {
          CUSTOMLOSS_EACH(h[u] = add_where(equal(y[u], cls), h[u], focal[u]))
        }
        CUSTOMLOSS_EACH(q[u] = step.others(u, cls, e[u]) * inverse[u])
        CUSTOMLOSS_EACH(found[u] = fused(p[u], slope[u] - h[u], found[u]))
        CUSTOMLOSS_EACH(found[u] = less_product(found[u], q[u], h[u]))
      }
      if constexpr (kWeighted) CUSTOMLOSS_EACH(found[u] = step.weight[u] * found[u])
      CUSTOMLOSS_EACH(store(to + kLanes * u, only(step.live[u], found[u]), valid[u]))
    });
  }

 private:
  template <int kVectors>
  inline __attribute__((always_inline)) void focal_slopes(
      const SoftmaxStep<kVectors, kWeighted, kFew>& step, const Floats (&inverse)[kVectors],
      Floats (&to)[kVectors]) const {
    constexpr float kLeast = kProbabilityFloor<float>;
    const Floats gamma = floats(tile_.focal.gamma), zero = floats(0.0f);
    Floats loss[kVectors], q[kVectors], power[kVectors], by[kVectors];
    step.logarithms(loss);
    CUSTOMLOSS_EACH(loss[u] = loss[u] + step.true_under[u])
    CUSTOMLOSS_EACH(q[u] = step.true_q(u, inverse[u]))
    powers(q, tile_.focal.gamma, power);
    CUSTOMLOSS_EACH(by[u] = zero)
    for (int64_t c = 0; c < tile_.classes; ++c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      CUSTOMLOSS_EACH(by[u] = choose(equal(step.y[u], cls), floats(focal_[c]), by[u]))
    }
    // Products with a p or a gradient of 0 are 0, whatever the other factor is.
    CUSTOMLOSS_EACH(const Floats p = step.true_e[u] * inverse[u];
                    loss[u] = only(unequal(p, zero), p * loss[u]))
    CUSTOMLOSS_EACH(to[u] =
                        fused(gamma * (power[u] / larger(floats(kLeast), q[u])), loss[u], power[u]))
    CUSTOMLOSS_EACH(to[u] = only(unequal(by[u], zero), by[u] * to[u]))
  }

  // The number of the true class where that is `cls`, else the other one.
  static inline Floats pick(const float (&of)[2], Ints y, Ints cls) {
    return choose(equal(y, cls), floats(of[1]), floats(of[0]));
  }

  const Tile<float>& tile_;
  float* const out_;
  const int64_t out_pitch_;
  float u_[kMostClasses][2], h_[kMostClasses][2], focal_[kMostClasses];
};

template <bool kLogs, bool kFocals, bool kWeighted, int kFew = 0>
void softmax_gradient_by_hand(const Tile<float>& tile, const float* by, float* out,
                              int64_t out_pitch) {
  const SoftmaxGradient<kLogs, kFocals, kWeighted, kFew> gradient(tile, by, out, out_pitch);
  for_registers(0, tile.pixels, [&](int64_t at, const auto& valid) { gradient.write(at, valid); });
}

template <bool kWeighted>
void softmax_gradient_of(const Tile<float>& tile, const float* by, float* out, int64_t out_pitch) {
  const auto with = [&]<bool kLogs, bool kFocals>() {
    if constexpr (!kFocals && !kWeighted) {  // that of most losses, as in softmax.h
      with_few(tile.classes, [&]<int kFew>() {
        softmax_gradient_by_hand<kLogs, false, false, kFew>(tile, by, out, out_pitch);
      });
    } else {
      softmax_gradient_by_hand<kLogs, kFocals, kWeighted>(tile, by, out, out_pitch);
    }
  };
  switch (tile.extra) {
    case 0: return with.template operator()<false, false>();
    case kLogLoss: return with.template operator()<true, false>();
    case kFocal: return with.template operator()<false, true>();
    default: return with.template operator()<true, true>();
  }
}

void headline_softmax_gradient(const Tile<float>& tile, bool weighted, const float* by, float* out,
                               int64_t out_pitch) {
  weighted ? softmax_gradient_of<true>(tile, by, out, out_pitch)
           : softmax_gradient_of<false>(tile, by, out, out_pitch);
}

}  // namespace
}  // namespace customloss::cpu
