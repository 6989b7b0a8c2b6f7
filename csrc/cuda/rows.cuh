// How groups are averaged, for finish.cuh and score.cuh.  A row is the groups that `average` turns
// into one number: all classes of a sample, or a single group without an average.  `reduction` is
// over rows.  A slice is the groups of one block: whole rows, or a piece of one row, a segment.
#pragma once

#include "../average.h"
#include "reduce.cuh"

namespace customloss::cuda {

struct Rows {
  Scoring scoring;
  int64_t rows, width;                       // groups = rows x width
  int64_t rows_per_slice, segments, slices;  // slices of whole rows, or segments of a row
  int row_lanes;                             // threads that add up a row
  // [slices, 2 or more]  total and count of a slice's rows, or of its segment
  double* stats;
  void* loss;
  bool loss_is_double;
};

// `slots`: the groups that a slice has room for.
inline void plan_rows(const Scoring& scoring, int64_t samples, int64_t classes, int64_t slots,
                      Rows* to) {
  const bool each = scoring.average == Average::kNone;
  to->scoring = scoring;
  to->rows = each ? samples * classes : samples;
  to->width = each ? 1 : classes;
  to->segments = ceil_div(to->width, slots);
  to->rows_per_slice = to->segments == 1 ? std::min(slots / to->width, to->rows) : 1;
  to->slices = to->segments == 1 ? ceil_div(to->rows, to->rows_per_slice) : to->rows * to->segments;
  to->row_lanes = static_cast<int>(power_of_two(to->width, 32));
}

inline void loss_to(const Tensor& loss, Rows* to) {
  to->loss = loss.mutable_data_ptr();
  to->loss_is_double = loss.scalar_type() == ScalarType::Double;
}

namespace {

// Reads what another block wrote in this launch: past the first-level cache.
__device__ __forceinline__ double fresh(const double* from) { return __ldcg(from); }

__device__ __forceinline__ void write_loss(const Rows& f, int64_t at, double value) {
  if (f.loss_is_double) {
    static_cast<double*>(f.loss)[at] = value;
  } else {
    static_cast<float*>(f.loss)[at] = static_cast<float>(value);
  }
}

struct Mean {
  double value, weight;
};

__device__ __forceinline__ Mean mean_of(double total, double weight) {
  return {weight != 0.0 ? total / weight : total, weight};
}

// The weight of a row in the loss, if `counted` rows count.
__device__ __forceinline__ double row_share(Reduction reduction, double counted) {
  if (reduction != Reduction::kMean) return 1.0;
  return counted != 0.0 ? 1.0 / counted : 0.0;
}

// For every row of a slice of whole rows, adds its values; one thread calls body(row, sums).  A
// collective.
template <int kNumbers, int kSlots, class Body>
__device__ __forceinline__ void add_rows(const Rows& f, int rows,
                                         const double (&values)[kNumbers][kSlots],
                                         const Body& body) {
  const int width = static_cast<int>(f.width);
  const int teams = kThreads / f.row_lanes, lane = threadIdx.x % f.row_lanes;
  for (int base = 0; base < rows; base += teams) {
    const int row = base + threadIdx.x / f.row_lanes;
    double own[kNumbers] = {};
    for (int i = lane; i < width && row < rows; i += f.row_lanes) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) own[k] += values[k][row * width + i];
    }
    sum_lanes(own, f.row_lanes);
    if (lane == 0 && row < rows) body(row, own);
  }
}

// For every row, adds the stats of its segments; one thread calls body(row, sums).  A collective.
template <int kNumbers, class Body>
__device__ __forceinline__ void add_segments(const Rows& f, const Body& body) {
  for (int64_t base = 0; base < f.rows; base += kWarps) {
    const int64_t row = base + threadIdx.x / kWarp;
    double own[kNumbers] = {};
    for (int64_t i = threadIdx.x % kWarp; i < f.segments && row < f.rows; i += kWarp) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) {
        own[k] += fresh(f.stats + kNumbers * (row * f.segments + i) + k);
      }
    }
    sum_lanes(own, kWarp);
    if (threadIdx.x % kWarp == 0 && row < f.rows) body(row, own);
  }
}

// Adds to `total` this thread's share of the stats of slices of whole rows.
template <int kNumbers>
__device__ __forceinline__ void add_slices(const Rows& f, double (&total)[kNumbers]) {
  for (int64_t i = threadIdx.x; i < f.slices; i += kThreads) {
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) total[k] += fresh(f.stats + kNumbers * i + k);
  }
}

}  // namespace
}  // namespace customloss::cuda
