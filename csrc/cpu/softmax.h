// The softmax sums of class numbers by hand (headline_sums of tile.h): what the compiler makes of
// the plain loops takes three times as long as reading the memory.  Included after
// registers_*.h.
//
// Let d = p where p <= 1/2, and d = p - 1 = -q where it is larger.  For every class, over the
// pixels of that class and likewise over the others,
//   sum of p = #(p > 1/2) + sum of d        sum of q = #(p <= 1/2) - sum of d
// and neither cancels.  At most one class of a pixel has p > 1/2: the first of the largest, whose q
// is the rest of the sum of exponentials over the whole.  So two masked additions and three
// popcounts serve all four sums, as in hard.h; of few classes one register counts all of them. With
// weights, which cannot be counted, w p and w q are added instead.  A smoothed class number is t =
// on or off, so at the end its sums follow from those over the pixels of the class and those over
// the others.  Only the log-loss then needs a further sum, over the others.
#pragma once

#include "softmax_step.h"

namespace customloss::cpu {
namespace {

// Which log-losses are summed: none, those of the true class, or those of every class.
enum Logs { kNoLogs, kTrueLogs, kEveryLogs };

// Counts of up to four classes, each in a byte of every lane: of the true class, of the class with
// p > 1/2, and of the pixels where they are the same.  A lane counts kMostAdds pixels at most.
class PackedCounts {
 public:
  PackedCounts() : target_(ints(0)), high_(ints(0)), both_(ints(0)) {}

  // Class numbers; -1 is not counted.
  template <int kVectors>
  inline __attribute__((always_inline)) void add(const Ints (&target)[kVectors],
                                                 const Ints (&high)[kVectors]) {
    Ints unit[kVectors];
    CUSTOMLOSS_EACH(unit[u] = unit_in_byte(target[u]))
    CUSTOMLOSS_EACH(target_ = sum_of(target_, unit[u]))
    CUSTOMLOSS_EACH(both_ = add_where(equal(target[u], high[u]), both_, unit[u]))
    CUSTOMLOSS_EACH(high_ = sum_of(high_, unit_in_byte(high[u])))
  }

  int64_t target(int64_t c) const { return byte_total(target_, c); }
  int64_t high(int64_t c) const { return byte_total(high_, c); }
  int64_t both(int64_t c) const { return byte_total(both_, c); }

 private:
  static_assert(kMostAdds < 256);

  Ints target_, high_, both_;
};

// Sums and counts of every class, over some pixels of a tile.
template <Logs kLogs, bool kFocals, bool kDecisions, bool kWeighted, int kFew>
class SoftmaxSums {
 public:
  explicit SoftmaxSums(const Tile<float>& tile) : tile_(tile), live_count_(0) {
    for (int64_t c = 0; c < tile.classes; ++c) {
      for (float& lane : lanes_[c]) lane = 0.0f;
      counts_[c] = Counts{0, 0, 0, 0, 0};
    }
  }

  // Adds kVectors registers of pixels from `at` on; `valid` are those that exist.
  template <int kVectors>
  inline __attribute__((always_inline)) void add(int64_t at, const Mask (&valid)[kVectors]) {
    constexpr int kPixels = kLanes * kVectors;
    const Floats one = floats(1.0f);
    alignas(64) float e_of[kMostClasses][kPixels];
    Floats true_loss[kVectors], focal[kVectors], inverse[kVectors], q[kVectors];
    SoftmaxStep<kVectors, kWeighted, kFew> step;
    step.load(tile_, at, valid);
    step.template exponentials<kLogs == kTrueLogs || kFocals, kPacked>(tile_, at, valid, e_of,
                                                                       [](int64_t) {});
    const auto& rest = step.rest;
    CUSTOMLOSS_EACH(inverse[u] = reciprocal_of(one + rest[u]))
    CUSTOMLOSS_EACH(q[u] = rest[u] * inverse[u])
    if constexpr (kLogs != kNoLogs || kFocals) step.logarithms(true_loss);
    if constexpr (kLogs == kTrueLogs || kFocals) {
      CUSTOMLOSS_EACH(true_loss[u] = true_loss[u] + step.true_under[u])
    }
    if constexpr (kFocals) {
      CUSTOMLOSS_EACH(focal[u] = step.true_q(u, inverse[u]))
      powers(focal, tile_.focal.gamma, focal);
      CUSTOMLOSS_EACH(focal[u] = focal[u] * true_loss[u])
    }
    if constexpr (!kPacked) {
      uint64_t alive = 0;
      CUSTOMLOSS_EACH(alive |= static_cast<uint64_t>(bits_of(step.live[u])) << (kLanes * u))
      live_count_ += __builtin_popcountll(alive);
    }
    // The leader where its p is above 1/2, which that of a NaN never is, else no class.
    Ints sure[kVectors];
    CUSTOMLOSS_EACH(sure[u] = choose(step.live[u] & below(rest[u], one), step.leader[u], ints(-1)))
    if constexpr (kPacked) packed_.add(step.y, sure);
    for_classes<kFew>(tile_.classes, [&](int64_t c) {
      const Ints cls = ints(static_cast<int32_t>(c));
      const float* const e = e_of[c];
      Floats p[kVectors];
      Mask k[kVectors], other[kVectors];
      uint64_t is_target = 0;
      CUSTOMLOSS_EACH(p[u] = load(e + kLanes * u) * inverse[u])
      CUSTOMLOSS_EACH(k[u] =
                          kWeighted ? step.live[u] & equal(step.y[u], cls) : equal(step.y[u], cls))
      CUSTOMLOSS_EACH(other[u] = without(step.live[u], k[u]))
      CUSTOMLOSS_EACH(is_target |= static_cast<uint64_t>(bits_of(k[u])) << (kLanes * u))
      if constexpr (kWeighted) {
        Floats of_q[kVectors];
        CUSTOMLOSS_EACH(of_q[u] = step.others(u, cls, load(e + kLanes * u)))
        CUSTOMLOSS_EACH(of_q[u] = of_q[u] * (step.weight[u] * inverse[u]))
        CUSTOMLOSS_EACH(p[u] = step.weight[u] * p[u])
        add_to<kVectors>(c, 0, k, other, p);
        add_to<kVectors>(c, 2, k, other, of_q);
      } else {
        if constexpr (!kPacked) {
          uint64_t is_high = 0;
          Mask high[kVectors];
          CUSTOMLOSS_EACH(high[u] = equal(sure[u], cls))
          CUSTOMLOSS_EACH(p[u] = choose(high[u], floats(0.0f) - q[u], p[u]))
          CUSTOMLOSS_EACH(is_high |= static_cast<uint64_t>(bits_of(high[u])) << (kLanes * u))
          counts_[c].target += __builtin_popcountll(is_target);
          counts_[c].high += __builtin_popcountll(is_high);
          counts_[c].target_high += __builtin_popcountll(is_target & is_high);
        }
        add_to<kVectors>(c, 0, k, other, p);
      }
      if constexpr (kLogs == kTrueLogs) add_true<kVectors>(c, kLogLane, k, step.weight, true_loss);
      if constexpr (kFocals) add_true<kVectors>(c, kFocalLane, k, step.weight, focal);
      if constexpr (kLogs == kEveryLogs) {
        Floats log[kVectors];
        CUSTOMLOSS_EACH(log[u] = true_loss[u] +
                                 (step.most[u] - logits_of(tile_, c, at + kLanes * u, valid[u])))
        if constexpr (kWeighted) CUSTOMLOSS_EACH(log[u] = step.weight[u] * log[u])
        add_to<kVectors>(c, kLogLane, k, other, log);
      }
      if constexpr (kDecisions) {
        uint64_t is_first = 0;
        CUSTOMLOSS_EACH(is_first |=
                        static_cast<uint64_t>(bits_of(step.live[u] & equal(step.leader[u], cls)))
                        << (kLanes * u))
        counts_[c].first += __builtin_popcountll(is_first);
        counts_[c].target_first += __builtin_popcountll(is_target & is_first);
      }
    });
  }

  void flush(double* to, int64_t to_pitch) {
    if constexpr (kPacked) {
      for (int64_t c = 0; c < kFew; ++c) {
        counts_[c] = Counts{packed_.target(c), packed_.high(c), packed_.both(c), 0, 0};
        live_count_ += counts_[c].target;
      }
    }
    for (int64_t c = 0; c < tile_.classes; ++c) {
      const Counts& count = counts_[c];
      const auto row = [&](int which) { return to + which * to_pitch + c; };
      if constexpr (kWeighted) {
        spread(lane(c, 0), lane(c, 1), row(0), row(1));
        spread(lane(c, 2), lane(c, 3), row(2), row(3));
      } else {
        const int64_t high = count.high - count.target_high;
        const int64_t target_low = count.target - count.target_high;
        const int64_t low = live_count_ - count.target - high;
        spread(count.target_high + lane(c, 0), high + lane(c, 1), row(0), row(1));
        spread(target_low - lane(c, 0), low - lane(c, 1), row(2), row(3));
      }
      if constexpr (kLogs == kTrueLogs) *row(4) += lane(c, kLogLane);
      if constexpr (kLogs == kEveryLogs) {
        *row(4) += static_cast<double>(tile_.smoothing.log_on) * lane(c, kLogLane) +
                   static_cast<double>(tile_.smoothing.log_off) * lane(c, kLogLane + 1);
      }
      if constexpr (kFocals) *row(row_of(tile_.extra, kFocal)) += lane(c, kFocalLane);
      if (tile_.extra & kSupport) {
        // the weight of a pixel is that of its p and its q
        *row(row_of(tile_.extra, kSupport)) +=
            kWeighted ? lane(c, 0) + lane(c, 2) : static_cast<double>(count.target);
      }
      if constexpr (kDecisions) {
        const int hard = row_of(tile_.extra, kHard);
        const int64_t wrong = count.first - count.target_first;
        const int64_t missing = count.target - count.target_first;
        const int64_t none = live_count_ - count.target - wrong;
        const int64_t of_decisions[] = {count.target_first, wrong, missing, none};
        for (int k = 0; k < 4; ++k) *row(hard + k) += static_cast<double>(of_decisions[k]);
      }
    }
  }

 private:
  struct Counts {
    int64_t target, high, target_high, first, target_first;
  };

  // The log-losses of every class take two lanes, and have no focal loss beside them.
  static constexpr int kLogLane = kWeighted ? 4 : 2, kFocalLane = kLogLane + 1,
                       kSums = kLogLane + 2;

  // Adds `value` to sum `at` of class c where c is the true class, and to the next one elsewhere.
  template <int kVectors>
  inline __attribute__((always_inline)) void add_to(int64_t c, int at,
                                                    const Mask (&true_class)[kVectors],
                                                    const Mask (&other)[kVectors],
                                                    const Floats (&value)[kVectors]) {
    float* const own = lanes_[c] + kLanes * at;
    Floats positives = load(own), negatives = load(own + kLanes);
    CUSTOMLOSS_EACH(positives = add_where(true_class[u], positives, value[u]))
    CUSTOMLOSS_EACH(negatives = add_where(other[u], negatives, value[u]))
    store(own, positives);
    store(own + kLanes, negatives);
  }

  // Adds `value` to sum `at` of class c where c is the true class.
  template <int kVectors>
  inline __attribute__((always_inline)) void add_true(int64_t c, int at,
                                                      const Mask (&true_class)[kVectors],
                                                      const Floats (&weight)[kVectors],
                                                      const Floats (&value)[kVectors]) {
    float* const own = lanes_[c] + kLanes * at;
    Floats sum = load(own);
    CUSTOMLOSS_EACH(const Floats share = kWeighted ? weight[u] * value[u] : value[u];
                    sum = add_where(true_class[u], sum, share))
    store(own, sum);
  }

  double lane(int64_t c, int at) const { return total(load(lanes_[c] + kLanes * at)); }

  // Adds to the sums weighed by t (`targets`) and by 1 - t (`rest`), given the sums over the pixels
  // of the class (`own`) and over those of other classes (`other`).
  void spread(double own, double other, double* targets, double* rest) const {
    const double on = tile_.smoothing.on, off = tile_.smoothing.off;
    const bool smoothed = off != 0.0;
    *targets += smoothed ? on * own + off * other : own;
    *rest += smoothed ? (1.0 - on) * own + (1.0 - off) * other : other;
  }

  // Where nothing else is counted, and every live pixel has a class among few.
  static constexpr bool kPacked = kFew > 0 && !kDecisions && !kWeighted;

  const Tile<float>& tile_;
  int64_t live_count_;
  PackedCounts packed_;
  alignas(64) float lanes_[kMostClasses][kLanes * kSums];
  Counts counts_[kMostClasses];
};

template <Logs kLogs, bool kFocals, bool kDecisions, bool kWeighted, int kFew = 0>
void softmax_sums(const Tile<float>& tile, double* to, int64_t to_pitch) {
  for_short_sums<kLanes>(tile.pixels, [&](int64_t first, int64_t last) {
    SoftmaxSums<kLogs, kFocals, kDecisions, kWeighted, kFew> sums(tile);
    for_registers(first, last, [&](int64_t at, const auto& valid) { sums.add(at, valid); });
    sums.flush(to, to_pitch);
  });
}

template <bool kWeighted>
void softmax_sums_focal(const Tile<float>& tile, double* to, int64_t to_pitch) {
  (tile.extra & kLogLoss) != 0 ? softmax_sums<kTrueLogs, true, false, kWeighted>(tile, to, to_pitch)
                               : softmax_sums<kNoLogs, true, false, kWeighted>(tile, to, to_pitch);
}

template <Logs kLogs, bool kDecisions, bool kWeighted>
void softmax_sums_of(const Tile<float>& tile, double* to, int64_t to_pitch) {
  if constexpr (!kDecisions && !kWeighted &&
                kLogs != kEveryLogs) {  // those of most losses: every loop written out makes the
                                        // library larger
    with_few(tile.classes, [&]<int kFew>() {
      softmax_sums<kLogs, false, false, false, kFew>(tile, to, to_pitch);
    });
  } else {
    softmax_sums<kLogs, false, kDecisions, kWeighted>(tile, to, to_pitch);
  }
}

template <bool kDecisions, bool kWeighted>
void softmax_sums_logs(const Tile<float>& tile, double* to, int64_t to_pitch) {
  if (!(tile.extra & kLogLoss)) {
    return softmax_sums_of<kNoLogs, kDecisions, kWeighted>(tile, to, to_pitch);
  }
  tile.smoothing.log_off == 0.0f
      ? softmax_sums_of<kTrueLogs, kDecisions, kWeighted>(tile, to, to_pitch)
      : softmax_sums_of<kEveryLogs, kDecisions, kWeighted>(tile, to, to_pitch);
}

void headline_softmax_sums(const Tile<float>& tile, bool weighted, double* to, int64_t to_pitch) {
  if (tile.extra & kFocal) {
    return weighted ? softmax_sums_focal<true>(tile, to, to_pitch)
                    : softmax_sums_focal<false>(tile, to, to_pitch);
  }
  if (weighted) return softmax_sums_logs<false, true>(tile, to, to_pitch);
  (tile.extra & kHard) != 0 ? softmax_sums_logs<true, false>(tile, to, to_pitch)
                            : softmax_sums_logs<false, false>(tile, to, to_pitch);
}

}  // namespace
}  // namespace customloss::cpu
