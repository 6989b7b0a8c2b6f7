// The softmax sums of class numbers by hand (headline_sums of tile.h): what the compiler makes of
// the plain loops takes three times as long as reading the memory.  Included by
// isa_avx512_tiles_f32.cpp alone.
//
// Let d = p where p <= 1/2, and d = p - 1 = -q where it is larger.  For every class, over the
// pixels of that class and likewise over the others,
//   sum of p = #(p > 1/2) + sum of d        sum of q = #(p <= 1/2) - sum of d
// and neither cancels.  At most one class of a pixel has p > 1/2: the first of the largest, whose q
// is the rest of the sum of exponentials over the whole.  So two masked additions and three
// popcounts serve all four sums, as in hard_avx512.h.  With weights, which cannot be counted, w p
// and w q are added instead.  A smoothed class number is t = on or off, so at the end its sums
// follow from those over the pixels of the class and those over the others.  Only the log-loss then
// needs a further sum, over the others.
#pragma once

#include "softmax_step_avx512.h"

namespace customloss::cpu {
namespace {

// Which log-losses are summed: none, those of the true class, or those of every class.
enum Logs { kNoLogs, kTrueLogs, kEveryLogs };

// Sums and counts of every class, over one tile.
template <Logs kLogs, bool kDecisions, bool kWeighted>
class SoftmaxSums {
 public:
  explicit SoftmaxSums(const Tile<float>& tile) : tile_(tile), live_count_(0) {
    for (int64_t c = 0; c < tile.classes; ++c) {
      for (float& lane : lanes_[c]) lane = 0.0f;
      counts_[c] = Counts{0, 0, 0, 0, 0};
    }
  }

  // Adds kVectors registers of pixels from `at` on; the bits of `valid` are those that exist.
  template <int kVectors>
  inline __attribute__((always_inline)) void add(int64_t at, const __mmask16 (&valid)[kVectors]) {
    constexpr int kPixels = 16 * kVectors;
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    alignas(64) float e_of[kMostClasses][kPixels];
    __mmask16 first_of[kMostClasses][kVectors];
    __m512 true_loss[kVectors], inverse[kVectors], q[kVectors];
    SoftmaxStep<kVectors, kWeighted> step;
    step.load(tile_, at, valid);
    const auto& y = step.y;
    const auto& live = step.live;
    const auto& weight = step.weight;
    const auto& most = step.most;
    const auto& rest = step.rest;
    CUSTOMLOSS_EACH(true_loss[u] = zero)
    for (int64_t c = 0; c < tile_.classes; ++c) {
      const __m512i cls = _mm512_set1_epi32(static_cast<int32_t>(c));
      __m512 below[kVectors];
      step.exponentials(tile_, c, at, valid, e_of[c], below);
      CUSTOMLOSS_EACH(first_of[c][u] = step.first[u])
      if constexpr (kLogs == kTrueLogs) {
        CUSTOMLOSS_EACH(true_loss[u] = _mm512_mask_mov_ps(
                            true_loss[u], _mm512_cmpeq_epi32_mask(y[u], cls), below[u]))
      }
    }
    CUSTOMLOSS_EACH(inverse[u] = reciprocal_of(_mm512_add_ps(one, rest[u])))
    CUSTOMLOSS_EACH(q[u] = _mm512_mul_ps(rest[u], inverse[u]))
    if constexpr (kLogs != kNoLogs) {
      alignas(64) float logs[kPixels];
      CUSTOMLOSS_EACH(_mm512_store_ps(logs + 16 * u, rest[u]))
#pragma omp simd
      for (int k = 0; k < kPixels; ++k) logs[k] = log1p_of(logs[k]);
      CUSTOMLOSS_EACH(true_loss[u] = _mm512_add_ps(true_loss[u], _mm512_load_ps(logs + 16 * u)))
    }
    uint64_t alive = 0;
    CUSTOMLOSS_EACH(alive |= static_cast<uint64_t>(live[u]) << (16 * u))
    live_count_ += __builtin_popcountll(alive);
    __mmask16 sure[kVectors];  // the largest p is above 1/2; never for a NaN
    CUSTOMLOSS_EACH(sure[u] = _mm512_mask_cmp_ps_mask(live[u], rest[u], one, _CMP_LT_OQ))
    for (int64_t c = 0; c < tile_.classes; ++c) {
      const __m512i cls = _mm512_set1_epi32(static_cast<int32_t>(c));
      __m512 p[kVectors];
      __mmask16 k[kVectors], other[kVectors];
      uint64_t is_target = 0;
      CUSTOMLOSS_EACH(p[u] = _mm512_mul_ps(_mm512_load_ps(e_of[c] + 16 * u), inverse[u]))
      CUSTOMLOSS_EACH(k[u] = _mm512_mask_cmpeq_epi32_mask(live[u], y[u], cls);
                      other[u] = static_cast<__mmask16>(live[u] & ~k[u]);
                      is_target |= static_cast<uint64_t>(k[u]) << (16 * u))
      if constexpr (kWeighted) {
        __m512 of_q[kVectors];
        CUSTOMLOSS_EACH(const __m512 rests = _mm512_sub_ps(_mm512_add_ps(one, rest[u]),
                                                           _mm512_load_ps(e_of[c] + 16 * u));
                        of_q[u] = _mm512_mul_ps(_mm512_mask_mov_ps(rests, first_of[c][u], rest[u]),
                                                _mm512_mul_ps(weight[u], inverse[u]));
                        p[u] = _mm512_mul_ps(weight[u], p[u]))
        add_to<kVectors>(c, 0, k, other, p);
        add_to<kVectors>(c, 2, k, other, of_q);
      } else {
        uint64_t is_high = 0;
        CUSTOMLOSS_EACH(const __mmask16 high = static_cast<__mmask16>(first_of[c][u] & sure[u]);
                        p[u] = _mm512_mask_sub_ps(p[u], high, zero, q[u]);
                        is_high |= static_cast<uint64_t>(high) << (16 * u))
        add_to<kVectors>(c, 0, k, other, p);
        counts_[c].target += __builtin_popcountll(is_target);
        counts_[c].high += __builtin_popcountll(is_high);
        counts_[c].target_high += __builtin_popcountll(is_target & is_high);
      }
      if constexpr (kLogs == kTrueLogs) {
        __m512 logs = _mm512_load_ps(lanes_[c] + 16 * kLogLane);
        CUSTOMLOSS_EACH(logs = kWeighted
                                   ? _mm512_mask3_fmadd_ps(weight[u], true_loss[u], logs, k[u])
                                   : _mm512_mask_add_ps(logs, k[u], logs, true_loss[u]))
        _mm512_store_ps(lanes_[c] + 16 * kLogLane, logs);
      }
      if constexpr (kLogs == kEveryLogs) {
        __m512 log[kVectors];
        CUSTOMLOSS_EACH(
            log[u] = _mm512_add_ps(
                true_loss[u], _mm512_sub_ps(most[u], logits_of(tile_, c, at + 16 * u, valid[u])));
            if constexpr (kWeighted) log[u] = _mm512_mul_ps(weight[u], log[u]))
        add_to<kVectors>(c, kLogLane, k, other, log);
      }
      if constexpr (kDecisions) {
        uint64_t is_first = 0;
        CUSTOMLOSS_EACH(is_first |= static_cast<uint64_t>(first_of[c][u] & live[u]) << (16 * u))
        counts_[c].first += __builtin_popcountll(is_first);
        counts_[c].target_first += __builtin_popcountll(is_target & is_first);
      }
    }
  }

  void flush(double* to, int64_t to_pitch) const {
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

  static constexpr int kLogLane = kWeighted ? 4 : 2, kLanes = kLogLane + 2;

  // Adds `value` to lane `at` of class c where c is the true class, and to the next lane elsewhere.
  template <int kVectors>
  inline __attribute__((always_inline)) void add_to(int64_t c, int at,
                                                    const __mmask16 (&true_class)[kVectors],
                                                    const __mmask16 (&other)[kVectors],
                                                    const __m512 (&value)[kVectors]) {
    float* const own = lanes_[c] + 16 * at;
    __m512 positives = _mm512_load_ps(own), negatives = _mm512_load_ps(own + 16);
    CUSTOMLOSS_EACH(positives = _mm512_mask_add_ps(positives, true_class[u], positives, value[u]))
    CUSTOMLOSS_EACH(negatives = _mm512_mask_add_ps(negatives, other[u], negatives, value[u]))
    _mm512_store_ps(own, positives);
    _mm512_store_ps(own + 16, negatives);
  }

  double lane(int64_t c, int at) const {
    return _mm512_reduce_add_ps(_mm512_load_ps(lanes_[c] + 16 * at));
  }

  // Adds to the sums weighed by t (`targets`) and by 1 - t (`rest`), given the sums over the pixels
  // of the class (`own`) and over those of other classes (`other`).
  void spread(double own, double other, double* targets, double* rest) const {
    const double on = tile_.smoothing.on, off = tile_.smoothing.off;
    const bool smoothed = off != 0.0;
    *targets += smoothed ? on * own + off * other : own;
    *rest += smoothed ? (1.0 - on) * own + (1.0 - off) * other : other;
  }

  const Tile<float>& tile_;
  int64_t live_count_;
  alignas(64) float lanes_[kMostClasses][16 * kLanes];
  Counts counts_[kMostClasses];
};

template <Logs kLogs, bool kDecisions, bool kWeighted>
void softmax_sums(const Tile<float>& tile, double* to, int64_t to_pitch) {
  SoftmaxSums<kLogs, kDecisions, kWeighted> sums(tile);
  for_registers(tile.pixels, [&](int64_t at, const auto& valid) { sums.add(at, valid); });
  sums.flush(to, to_pitch);
}

template <bool kDecisions, bool kWeighted>
void softmax_sums_logs(const Tile<float>& tile, double* to, int64_t to_pitch) {
  if (!(tile.extra & kLogLoss)) {
    return softmax_sums<kNoLogs, kDecisions, kWeighted>(tile, to, to_pitch);
  }
  tile.smoothing.log_off == 0.0f
      ? softmax_sums<kTrueLogs, kDecisions, kWeighted>(tile, to, to_pitch)
      : softmax_sums<kEveryLogs, kDecisions, kWeighted>(tile, to, to_pitch);
}

void headline_softmax_sums(const Tile<float>& tile, bool weighted, double* to, int64_t to_pitch) {
  if (weighted) return softmax_sums_logs<false, true>(tile, to, to_pitch);
  tile.extra& kHard ? softmax_sums_logs<true, false>(tile, to, to_pitch)
                    : softmax_sums_logs<false, false>(tile, to, to_pitch);
}

}  // namespace
}  // namespace customloss::cpu
