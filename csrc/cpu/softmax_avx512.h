// The softmax sums of unweighted class numbers by hand: what the compiler makes of the plain loops
// takes three times as long as the memory does.  Included by isa_avx512.cpp alone.
//
// With d = p where p <= 1/2 and d = p - 1 = -q where it is larger, per class and kind of target
//   sum of p = #(p > 1/2) + sum of d        sum of q = #(p <= 1/2) - sum of d
// and neither side cancels.  At most one class of a pixel has p > 1/2: the first of the largest,
// whose q is the rest of the sum of exponentials.  So two masked additions and three popcounts
// serve all four sums, as in hard_avx512.h.
#pragma once

#include "hard_avx512.h"
#include "tile.h"

namespace customloss::cpu {
namespace {

constexpr int64_t kMostClasses = 128;  // whose sums lie on the stack

#define CUSTOMLOSS_EACH(statement) \
  _Pragma("GCC unroll 8") for (int u = 0; u < kVectors; ++u) { statement; }

// Sums of d and counts of every class, over one tile.
class SoftmaxSums {
 public:
  explicit SoftmaxSums(const Tile<float>& tile) : tile_(tile), live_count_(0) {
    for (int64_t c = 0; c < tile.classes; ++c) {
      for (float& lane : lanes_[c]) lane = 0.0f;
      counts_[c] = Counts{0, 0, 0, 0, 0};
    }
  }

  // kVectors registers of pixels from `at` on, of which `valid` exist.
  template <int kVectors, bool kLogs, bool kDecisions>
  inline __attribute__((always_inline)) void add(int64_t at, const __mmask16 (&valid)[kVectors]) {
    constexpr int kPixels = 16 * kVectors;
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    alignas(64) float e_of[kMostClasses][kPixels];
    __mmask16 first_of[kMostClasses][kVectors];
    __m512i y[kVectors];
    __mmask16 live[kVectors], claimed[kVectors];
    __m512 most[kVectors], rest[kVectors], missed[kVectors], inverse[kVectors], q[kVectors];
    CUSTOMLOSS_EACH(
        y[u] = _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), valid[u], tile_.labels + at + 16 * u))
    CUSTOMLOSS_EACH(live[u] = _mm512_cmpge_epi32_mask(y[u], _mm512_setzero_si512()))
    CUSTOMLOSS_EACH(most[u] = load(0, at + 16 * u, valid[u]))
    for (int64_t c = 1; c < tile_.classes; ++c) {
      CUSTOMLOSS_EACH(most[u] = _mm512_max_ps(load(c, at + 16 * u, valid[u]), most[u]))
    }
    CUSTOMLOSS_EACH(rest[u] = missed[u] = zero; claimed[u] = 0)
    for (int64_t c = 0; c < tile_.classes; ++c) {
      const __m512i cls = _mm512_set1_epi32(static_cast<int32_t>(c));
      __m512 below[kVectors], e[kVectors];
      CUSTOMLOSS_EACH(below[u] = _mm512_sub_ps(most[u], load(c, at + 16 * u, valid[u])))
      negative_exp(below, e);
      CUSTOMLOSS_EACH(_mm512_store_ps(e_of[c] + 16 * u, e[u]))
      CUSTOMLOSS_EACH(
          const __mmask16 largest = _mm512_cmp_ps_mask(below[u], zero, _CMP_EQ_OQ);
          const __mmask16 first = static_cast<__mmask16>(largest & ~claimed[u]);
          claimed[u] = static_cast<__mmask16>(claimed[u] | largest); first_of[c][u] = first;
          rest[u] = _mm512_mask_add_ps(rest[u], static_cast<__mmask16>(~first), rest[u], e[u]))
      if constexpr (kLogs) {
        CUSTOMLOSS_EACH(
            missed[u] = _mm512_mask_mov_ps(missed[u], _mm512_cmpeq_epi32_mask(y[u], cls), below[u]))
      }
    }
    CUSTOMLOSS_EACH(inverse[u] = _mm512_div_ps(one, _mm512_add_ps(one, rest[u])))
    CUSTOMLOSS_EACH(q[u] = _mm512_mul_ps(rest[u], inverse[u]))
    if constexpr (kLogs) {
      alignas(64) float logs[kPixels];
      CUSTOMLOSS_EACH(_mm512_store_ps(logs + 16 * u, rest[u]))
#pragma omp simd
      for (int k = 0; k < kPixels; ++k) logs[k] = log1p_of(logs[k]);
      CUSTOMLOSS_EACH(missed[u] = _mm512_add_ps(missed[u], _mm512_load_ps(logs + 16 * u)))
    }
    uint64_t alive = 0;
    CUSTOMLOSS_EACH(alive |= static_cast<uint64_t>(live[u]) << (16 * u))
    live_count_ += __builtin_popcountll(alive);
    __mmask16 sure[kVectors];  // a NaN is not
    CUSTOMLOSS_EACH(sure[u] = _mm512_mask_cmp_ps_mask(live[u], rest[u], one, _CMP_LT_OQ))
    for (int64_t c = 0; c < tile_.classes; ++c) {
      const __m512i cls = _mm512_set1_epi32(static_cast<int32_t>(c));
      float* const own = lanes_[c];
      __m512 positives = _mm512_load_ps(own), negatives = _mm512_load_ps(own + 16);
      uint64_t is_target = 0, is_high = 0;
      __m512 d[kVectors];
      __mmask16 k[kVectors];
      CUSTOMLOSS_EACH(d[u] = _mm512_mul_ps(_mm512_load_ps(e_of[c] + 16 * u), inverse[u]))
      CUSTOMLOSS_EACH(const __mmask16 high = static_cast<__mmask16>(first_of[c][u] & sure[u]);
                      d[u] = _mm512_mask_sub_ps(d[u], high, zero, q[u]);
                      is_high |= static_cast<uint64_t>(high) << (16 * u))
      CUSTOMLOSS_EACH(k[u] = _mm512_cmpeq_epi32_mask(y[u], cls);
                      is_target |= static_cast<uint64_t>(k[u]) << (16 * u))
      CUSTOMLOSS_EACH(positives = _mm512_mask_add_ps(positives, k[u], positives, d[u]))
      CUSTOMLOSS_EACH(negatives = _mm512_mask_add_ps(
                          negatives, static_cast<__mmask16>(live[u] & ~k[u]), negatives, d[u]))
      _mm512_store_ps(own, positives);
      _mm512_store_ps(own + 16, negatives);
      if constexpr (kLogs) {
        __m512 logs = _mm512_load_ps(own + 32);
        CUSTOMLOSS_EACH(logs = _mm512_mask_add_ps(logs, k[u], logs, missed[u]))
        _mm512_store_ps(own + 32, logs);
      }
      counts_[c].target += __builtin_popcountll(is_target);
      counts_[c].high += __builtin_popcountll(is_high);
      counts_[c].target_high += __builtin_popcountll(is_target & is_high);
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
      const double p = _mm512_reduce_add_ps(_mm512_load_ps(lanes_[c]));
      const double n = _mm512_reduce_add_ps(_mm512_load_ps(lanes_[c] + 16));
      const Counts& count = counts_[c];
      const int64_t high = count.high - count.target_high;
      to[c] += static_cast<double>(count.target_high) + p;
      to[to_pitch + c] += static_cast<double>(high) + n;
      to[2 * to_pitch + c] += static_cast<double>(count.target - count.target_high) - p;
      to[3 * to_pitch + c] += static_cast<double>(live_count_ - count.target - high) - n;
      if (tile_.extra & kLogLoss) {
        to[4 * to_pitch + c] += _mm512_reduce_add_ps(_mm512_load_ps(lanes_[c] + 32));
      }
      if (tile_.extra & kHard) {
        double* const hard = to + row_of(tile_.extra, kHard) * to_pitch + c;
        const int64_t wrong = count.first - count.target_first;
        hard[0] += static_cast<double>(count.target_first);
        hard[to_pitch] += static_cast<double>(wrong);
        hard[2 * to_pitch] += static_cast<double>(count.target - count.target_first);
        hard[3 * to_pitch] += static_cast<double>(live_count_ - count.target - wrong);
      }
    }
  }

 private:
  struct Counts {
    int64_t target, high, target_high, first, target_first;
  };

  inline __m512 load(int64_t c, int64_t at, __mmask16 valid) const {
    const float* from = tile_.lies + c * tile_.lies_pitch + at;
    return valid == 0xffff ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(valid, from);
  }

  const Tile<float>& tile_;
  int64_t live_count_;
  alignas(64) float lanes_[kMostClasses][48];
  Counts counts_[kMostClasses];
};

template <bool kLogs, bool kDecisions>
void softmax_sums(const Tile<float>& tile, double* to, int64_t to_pitch) {
  SoftmaxSums sums(tile);
  int64_t i = 0;
  for (; i + 32 <= tile.pixels; i += 32) {
    const __mmask16 all[2] = {0xffff, 0xffff};
    sums.add<2, kLogs, kDecisions>(i, all);
  }
  for (; i < tile.pixels; i += 16) {
    const __mmask16 some[1] = {first(tile.pixels - i)};
    sums.add<1, kLogs, kDecisions>(i, some);
  }
  sums.flush(to, to_pitch);
}

void plain_softmax_sums(const Tile<float>& tile, double* to, int64_t to_pitch) {
  switch (tile.extra) {
    case 0: return softmax_sums<false, false>(tile, to, to_pitch);
    case kLogLoss: return softmax_sums<true, false>(tile, to, to_pitch);
    case kHard: return softmax_sums<false, true>(tile, to, to_pitch);
    default: return softmax_sums<true, true>(tile, to, to_pitch);
  }
}

#undef CUSTOMLOSS_EACH

}  // namespace
}  // namespace customloss::cpu
