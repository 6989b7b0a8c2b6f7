// What the sums of a softmax and their gradient have in common, by hand: the pixels of a step, and
// the exponentials of one class after the other.  Included by softmax.h and
// softmax_gradient.h.
#pragma once

#include "tile.h"

namespace customloss::cpu {
namespace {

constexpr int64_t kMostClasses = 128;  // the exponentials and sums of all classes lie on the stack

// The logits of class c from pixel `at` on.
inline Floats logits_of(const Tile<float>& tile, int64_t c, int64_t at, Mask valid) {
  const float* from = tile.lies + c * tile.lies_pitch + at;
  return is_full(valid) ? load(from) : load(from, valid);
}

// Calls body(c) for the classes from kFirst on.  kFew is the number of classes where the loop is
// written out for it, which keeps more in registers, and else 0.
template <int kFew, int kFirst = 0, class Body>
inline __attribute__((always_inline)) void for_classes(int64_t classes, const Body& body) {
  if constexpr (kFew > 0) {
    static_assert(kFew <= 4, "the loop below is written out for four classes at most");
#pragma GCC unroll 4
    for (int64_t c = kFirst; c < kFew; ++c) body(c);
  } else {
    for (int64_t c = kFirst; c < classes; ++c) body(c);
  }
}

// Calls body<kFew>() with the number of classes if their loops are written out, else with 0.
template <class Body>
inline void with_few(int64_t classes, const Body& body) {
  switch (classes) {
    case 2: return body.template operator()<2>();
    case 3: return body.template operator()<3>();
    case 4: return body.template operator()<4>();
    default: return body.template operator()<0>();
  }
}

// kVectors registers of pixels.
template <int kVectors, bool kWeighted, int kFew>
struct SoftmaxStep {
  Ints y[kVectors];     // class numbers, -1 where nothing counts
  Mask live[kVectors];  // the pixels that count
  Floats weight[kVectors];
  Floats most[kVectors];  // the largest logit
  Ints leader[kVectors];  // the first class that has it
  Floats rest[kVectors];  // the sum of e without that of the leader
  // of the true class: e, and how far its logit is below the largest
  Floats true_e[kVectors], true_under[kVectors];

  // Reads the pixels from `at` on; `valid` are those that exist.
  inline __attribute__((always_inline)) void load(const Tile<float>& tile, int64_t at,
                                                  const Mask (&valid)[kVectors]) {
    CUSTOMLOSS_EACH(y[u] = load_ints(tile.labels + at + kLanes * u, valid[u], -1))
    CUSTOMLOSS_EACH(live[u] = not_negative(y[u]))
    if constexpr (kWeighted) {
      const float* const weights = tile.rows + kLive * tile.pitch + at;
      CUSTOMLOSS_EACH(weight[u] = customloss::cpu::load(weights + kLanes * u, live[u]))
      CUSTOMLOSS_EACH(live[u] = live[u] & unequal(weight[u], floats(0.0f)))
    }
    if (tile.lies != tile.x) {
      for_classes<kFew>(tile.classes, [&](int64_t c) {
        fetch_ahead(tile.lies + c * tile.lies_pitch + at, 4 * kLanes * kVectors, kBytesAhead / 2);
      });
    }
    CUSTOMLOSS_EACH(most[u] = logits_of(tile, 0, at + kLanes * u, valid[u]))
    CUSTOMLOSS_EACH(leader[u] = ints(0))
    for_classes<kFew, 1>(tile.classes, [&](int64_t c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      Floats own[kVectors];
      Mask leads[kVectors];
      CUSTOMLOSS_EACH(own[u] = logits_of(tile, c, at + kLanes * u, valid[u]))
      CUSTOMLOSS_EACH(leads[u] = below(most[u], own[u]))
      CUSTOMLOSS_EACH(leader[u] = choose(leads[u], cls, leader[u]))
      if constexpr (kFew > 0) {
        CUSTOMLOSS_EACH(lead_[c - 1][u] = leads[u])
        CUSTOMLOSS_EACH(lower_[c - 1][u] = choose(leads[u], most[u], own[u]))
      }
      CUSTOMLOSS_EACH(most[u] = larger(own[u], most[u]))
    });
    // A largest logit that is not finite has no leader, and a rest that is NaN.
    CUSTOMLOSS_EACH(rest[u] = most[u] - most[u])
    CUSTOMLOSS_EACH(leader[u] = choose(equal(rest[u], rest[u]), leader[u], ints(-1)))
  }

  // Writes e of all classes, and after each of them calls also(c).  kTrue: finds true_e and
  // true_under too.  kMisses, of few classes: a leader with p > 1/2 gets -rest for its e, so that
  // e / (1 + rest) is -q, and p for all others.
  template <bool kTrue, bool kMisses, class Also>
  inline __attribute__((always_inline)) void exponentials(const Tile<float>& tile, int64_t at,
                                                          const Mask (&valid)[kVectors],
                                                          float (*e_of)[kLanes * kVectors],
                                                          const Also& also) {
    if constexpr (kTrue) CUSTOMLOSS_EACH(true_e[u] = true_under[u] = floats(0.0f))
    if constexpr (kFew > 0) few_exponentials<kMisses>(e_of);
    for_classes<kFew>(tile.classes, [&](int64_t c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      Floats under[kVectors];
      CUSTOMLOSS_EACH(under[u] = most[u] - logits_of(tile, c, at + kLanes * u, valid[u]))
      if constexpr (kFew == 0) {
        Floats e[kVectors];
        negative_exp(under, e);
        CUSTOMLOSS_EACH(store(e_of[c] + kLanes * u, e[u]))
        CUSTOMLOSS_EACH(rest[u] = add_elsewhere(equal(leader[u], cls), rest[u], e[u]))
      }
      if constexpr (kTrue) {
        const float* const e = e_of[c];
        CUSTOMLOSS_EACH(true_under[u] = choose(equal(y[u], cls), under[u], true_under[u]))
        CUSTOMLOSS_EACH(
            true_e[u] = choose(equal(y[u], cls), customloss::cpu::load(e + kLanes * u), true_e[u]))
      }
      also(c);
    });
  }

  // -log p of the true class is true_under and this: log(1 + rest).
  inline __attribute__((always_inline)) void logarithms(Floats (&to)[kVectors]) const {
    alignas(64) float log[kLanes * kVectors];
    CUSTOMLOSS_EACH(store(log + kLanes * u, rest[u]))
#pragma omp simd
    for (int k = 0; k < kLanes * kVectors; ++k) log[k] = log1p_of(log[k]);
    CUSTOMLOSS_EACH(to[u] = customloss::cpu::load(log + kLanes * u))
  }

  // (1 + rest) q of the classes `cls`, whose e is given: the sum of e of all other classes.  That
  // of the leader is rest itself, in which nothing cancels.
  inline __attribute__((always_inline)) Floats others(int u, Ints cls, Floats e) const {
    return choose(equal(leader[u], cls), rest[u], floats(1.0f) + rest[u] - e);
  }

  // q of the true class, given 1 / (1 + rest).
  inline __attribute__((always_inline)) Floats true_q(int u, Floats inverse) const {
    return others(u, y[u], true_e[u]) * inverse;
  }

 private:
  // The e of a leader is 1. So of few classes only the others are computed: each class has met the
  // leader of those before it, and one of the two was lower. Going back through these meetings
  // tells whose the e are.
  template <bool kMisses>
  inline __attribute__((always_inline)) void few_exponentials(float (*e_of)[kLanes * kVectors]) {
    const Floats zero = floats(0.0f), one = floats(1.0f);
    Floats lower_e[kMeetings][kVectors], leading[kVectors];
#pragma GCC unroll 4
    for (int64_t c = 1; c < kFew; ++c) {
      Floats under[kVectors];
      CUSTOMLOSS_EACH(under[u] = most[u] - lower_[c - 1][u])
      negative_exp(under, lower_e[c - 1]);
      CUSTOMLOSS_EACH(rest[u] = rest[u] + lower_e[c - 1][u])
    }
    CUSTOMLOSS_EACH(leading[u] = kMisses ? choose(below(rest[u], one), zero - rest[u], one) : one)
#pragma GCC unroll 4
    for (int64_t c = kFew - 1; c > 0; --c) {
      const auto& lead = lead_[c - 1];
      const auto& lower = lower_e[c - 1];
      CUSTOMLOSS_EACH(store(e_of[c] + kLanes * u, choose(lead[u], leading[u], lower[u])))
      CUSTOMLOSS_EACH(leading[u] = choose(lead[u], lower[u], leading[u]))
    }
    CUSTOMLOSS_EACH(store(e_of[0] + kLanes * u, leading[u]))
  }

  // Of few classes: where class c + 1 is above all before it, and the lower logit of the two.
  static constexpr int kMeetings = kFew > 0 ? kFew - 1 : 1;
  Mask lead_[kMeetings][kVectors];
  Floats lower_[kMeetings][kVectors];
};

// base^gamma of every lane.
template <int kVectors>
inline __attribute__((always_inline)) void powers(const Floats (&base)[kVectors], float gamma,
                                                  Floats (&to)[kVectors]) {
  alignas(64) float power[kLanes * kVectors];
  CUSTOMLOSS_EACH(store(power + kLanes * u, base[u]))
#pragma omp simd
  for (int k = 0; k < kLanes * kVectors; ++k) power[k] = power_of(power[k], gamma);
  CUSTOMLOSS_EACH(to[u] = load(power + kLanes * u))
}

// Calls body(at, valid) for the pixels first .. last-1 of a tile: kSoftmaxStep registers of them at
// a time, and for the rest one that may be part empty.
template <class Body>
inline void for_registers(int64_t first, int64_t last, const Body& body) {
  constexpr int kVectors = kSoftmaxStep;
  int64_t i = first;
  for (; i + kLanes * kVectors <= last; i += kLanes * kVectors) {
    Mask all[kVectors];
    CUSTOMLOSS_EACH(all[u] = all_lanes())
    body(i, all);
  }
  for (; i < last; i += kLanes) {
    const Mask some[1] = {first_lanes(last - i)};
    body(i, some);
  }
}

}  // namespace
}  // namespace customloss::cpu
