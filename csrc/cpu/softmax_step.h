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
  // of the true class: e, and how far its logit is below the largest; after note_true() of each
  // class
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
      CUSTOMLOSS_EACH(own[u] = logits_of(tile, c, at + kLanes * u, valid[u]))
      CUSTOMLOSS_EACH(leader[u] = choose(below(most[u], own[u]), cls, leader[u]))
      CUSTOMLOSS_EACH(most[u] = larger(own[u], most[u]))
    });
    CUSTOMLOSS_EACH(true_e[u] = true_under[u] = floats(0.0f))
    // A largest logit that is not finite has no leader, and a rest that is NaN.
    CUSTOMLOSS_EACH(rest[u] = most[u] - most[u])
    CUSTOMLOSS_EACH(leader[u] = choose(equal(rest[u], rest[u]), leader[u], ints(-1)))
  }

  // Writes e of class c; `under` is how far its logits are below the largest.
  inline __attribute__((always_inline)) void exponentials(const Tile<float>& tile, int64_t c,
                                                          int64_t at, const Mask (&valid)[kVectors],
                                                          float* to, Floats (&under)[kVectors]) {
    const Ints cls = ints(static_cast<int32_t>(c));
    Floats e[kVectors];
    CUSTOMLOSS_EACH(under[u] = most[u] - logits_of(tile, c, at + kLanes * u, valid[u]))
    negative_exp(under, e);
    CUSTOMLOSS_EACH(store(to + kLanes * u, e[u]))
    CUSTOMLOSS_EACH(rest[u] = add_elsewhere(equal(leader[u], cls), rest[u], e[u]))
  }

  inline __attribute__((always_inline)) void note_true(int64_t c, const float* e_of,
                                                       const Floats (&under)[kVectors]) {
    const Ints cls = ints(static_cast<int32_t>(c));
    CUSTOMLOSS_EACH(true_under[u] = choose(equal(y[u], cls), under[u], true_under[u]))
    CUSTOMLOSS_EACH(
        true_e[u] = choose(equal(y[u], cls), customloss::cpu::load(e_of + kLanes * u), true_e[u]))
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
