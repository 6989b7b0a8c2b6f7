// From partial sums to sums, and on to the loss and its gradient by the sums: the device twin of
// GroupAverage in average.h, with one block per slice of groups (rows.cuh).
#pragma once

#include "rows.cuh"

namespace customloss::cuda {

// How partial sums are addressed, and how many threads add those of one group.
struct Combination {
  const double* partials;  // null where `sums` already holds them: one unit per group
  double* sums;            // [4, groups]
  int64_t units, groups;
  int64_t unit_stride, sum_stride, group_stride;
  int helpers;  // threads per group, a power of two
};

struct Finish : Rows {
  Combination combination;
  bool known;     // all groups weigh the same, so coefficients need no other block's result
  bool at_once;   // the last block writes the coefficients too
  double* means;  // [rows, 2]    average over a row's groups, and their weight
  double* outer;  // [1]          the weight of a row in the loss
  unsigned* ticket;
};

namespace {

__device__ __forceinline__ void write_sums(const Combination& c, int64_t group, const Sums& sums) {
  c.sums[group] = sums.tp;
  c.sums[c.groups + group] = sums.fp;
  c.sums[2 * c.groups + group] = sums.fn;
  c.sums[3 * c.groups + group] = sums.tn;
}

// The groups [first, first + count) of a block, and the one this thread helps to add.
struct Slice {
  int64_t first;
  int count, local, helper;

  __device__ __forceinline__ Slice(const Combination& c, int64_t first, int64_t count)
      : first(first), count(static_cast<int>(count)) {
    // neighbouring threads read neighbouring partial sums
    const int slots = kThreads / c.helpers;
    const bool by_unit = c.unit_stride == 1;
    local = by_unit ? threadIdx.x / c.helpers : threadIdx.x % slots;
    helper = by_unit ? threadIdx.x % c.helpers : threadIdx.x / slots;
  }
  __device__ __forceinline__ int64_t group() const { return first + local; }
  __device__ __forceinline__ bool owner() const { return helper == 0 && local < count; }
};

// The sums of a slice's groups, in the threads that own them; a collective.
__device__ __forceinline__ Sums combine(const Combination& c, const Slice& slice) {
  __shared__ double shared[4][kThreads];
  double own[4] = {0.0, 0.0, 0.0, 0.0};
  if (slice.local < slice.count) {
    const int64_t from = slice.group();
    if (c.partials == nullptr) {
#pragma unroll
      for (int s = 0; s < 4; ++s) own[s] = c.sums[s * c.groups + from];
    } else {
      const double* at = c.partials + from * c.group_stride;
#pragma unroll 4
      for (int64_t unit = slice.helper; unit < c.units; unit += c.helpers) {
#pragma unroll
        for (int s = 0; s < 4; ++s) own[s] += at[unit * c.unit_stride + s * c.sum_stride];
      }
    }
  }
  const int place = slice.local * c.helpers + slice.helper;
  for (int half = c.helpers / 2; half > 0; half /= 2) {
#pragma unroll
    for (int s = 0; s < 4; ++s) shared[s][place] = own[s];
    __syncthreads();
    if (slice.helper < half) {
#pragma unroll
      for (int s = 0; s < 4; ++s) own[s] += shared[s][place + half];
    }
    __syncthreads();
  }
  return {own[0], own[1], own[2], own[3]};
}

// The sums alone.
//   launch  kThreads / helpers groups per block
//   bytes   reads 32 per unit and group, writes 32 per group
__global__ __launch_bounds__(kThreads) void combine_sums(const Combination c) {
  const int64_t slots = kThreads / c.helpers;
  const int64_t first = blockIdx.x * slots;
  const Slice slice(c, first, min(slots, c.groups - first));
  const Sums sums = combine(c, slice);
  if (slice.owner()) write_sums(c, slice.group(), sums);
}

__device__ __forceinline__ void write_mean(const Finish& f, int64_t row, const Mean& mean) {
  f.means[2 * row] = mean.value;
  f.means[2 * row + 1] = mean.weight;
  if (f.scoring.reduction == Reduction::kNone) write_loss(f, row, mean.value);
}

// Replaces the sums of a group by the gradient by them.
__device__ __forceinline__ void write_coefficients(const Finish& f, int64_t group,
                                                   const GroupLoss& loss, const Mean& mean,
                                                   double outer) {
  write_sums(f.combination, group,
             averaged_grad(f.scoring.average, loss, 1.0, mean.value, mean.weight, outer));
}

__device__ void finish_group(const Finish& f, int64_t group, double outer) {
  const Combination& c = f.combination;
  const Sums sums{fresh(c.sums + group), fresh(c.sums + c.groups + group),
                  fresh(c.sums + 2 * c.groups + group), fresh(c.sums + 3 * c.groups + group)};
  const int64_t row = group / f.width;
  const Mean mean{fresh(f.means + 2 * row), fresh(f.means + 2 * row + 1)};
  write_coefficients(f, group, group_loss(f.scoring.score, sums), mean, outer);
}

// Total and count over the rows of a slice, or over the groups of a segment; a collective.
__device__ void slice_stats(const Finish& f, const Slice& slice,
                            const double (&values)[2][kThreads], double (&total)[2]) {
  total[0] = total[1] = 0.0;
  if (f.segments > 1) {
    if (static_cast<int>(threadIdx.x) < slice.count) {
      total[0] = values[0][threadIdx.x];
      total[1] = values[1][threadIdx.x];
    }
    sum_block(total);
    return;
  }
  const int width = static_cast<int>(f.width);
  add_rows(f, slice.count / width, values, [&](int row, const double (&own)[2]) {
    const Mean mean = mean_of(own[0], own[1]);
    write_mean(f, slice.first / width + row, mean);
    total[0] += mean.value;
    total[1] += mean.weight != 0.0 ? 1.0 : 0.0;
  });
  sum_block(total);
}

// The loss from the stats of all slices, by one block; returns the weight of a row in it.
__device__ double finish_loss(const Finish& f) {
  double total[2] = {0.0, 0.0};
  if (f.segments == 1) {
    add_slices(f, total);
  } else {
    add_segments<2>(f, [&](int64_t row, const double (&own)[2]) {
      const Mean mean = mean_of(own[0], own[1]);
      write_mean(f, row, mean);
      total[0] += mean.value;
      total[1] += mean.weight != 0.0 ? 1.0 : 0.0;
    });
  }
  sum_block(total);
  const double outer = row_share(f.scoring.reduction, total[1]);
  if (threadIdx.x == 0) {
    *f.outer = outer;
    if (f.scoring.reduction != Reduction::kNone) write_loss(f, 0, outer * total[0]);
  }
  return outer;
}

// Whether this block is the last to come here.  The last one sees what all blocks wrote before.
__device__ __forceinline__ bool last_block(unsigned* ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// From sums to losses of groups, their averages, the loss, and its gradient by the sums.
//   maths   score.h, group by group; the averages of average.h, added in a fixed order
//   launch  one block per slice; the last one to finish adds the slices up
//   bytes   reads 32 per unit and group, writes 32 per group
__global__ __launch_bounds__(kThreads) void finish_sums(const __grid_constant__ Finish f) {
  __shared__ double values[2][kThreads];  // weighted losses and weights of the groups
  const Combination& c = f.combination;
  const int64_t row = f.segments == 1 ? blockIdx.x * f.rows_per_slice : blockIdx.x / f.segments;
  const int64_t slots = kThreads / c.helpers;
  const int64_t segment = f.segments == 1 ? 0 : blockIdx.x - row * f.segments;
  const int64_t count = f.segments == 1 ? min(f.rows_per_slice, f.rows - row) * f.width
                                        : min(slots, f.width - segment * slots);
  const Slice slice(c, row * f.width + segment * slots, count);
  const Sums sums = combine(c, slice);
  if (slice.owner()) {
    const GroupLoss loss = group_loss(f.scoring.score, sums);
    const double weight = group_weight(f.scoring.average, loss, 1.0);
    values[0][slice.local] = weight == 0.0 ? 0.0 : weight * loss.value;
    values[1][slice.local] = weight;
    if (f.known) {
      const Mean mean{0.0, static_cast<double>(f.width)};
      write_coefficients(f, slice.group(), loss, mean,
                         row_share(f.scoring.reduction, static_cast<double>(f.rows)));
    } else {
      write_sums(c, slice.group(), sums);
    }
  }
  __syncthreads();
  double total[2];
  slice_stats(f, slice, values, total);
  if (threadIdx.x == 0) {
    f.stats[2 * int64_t{blockIdx.x}] = total[0];
    f.stats[2 * int64_t{blockIdx.x} + 1] = total[1];
  }
  if (!last_block(f.ticket)) return;
  const double outer = finish_loss(f);
  if (!f.at_once) return;
  __threadfence();
  __syncthreads();
  for (int64_t group = threadIdx.x; group < c.groups; group += kThreads) {
    finish_group(f, group, outer);
  }
}

// The gradient by the sums, if it depends on all groups and these are too many for one block.
//   launch  one thread per group
//   bytes   reads and writes 32 per group
__global__ __launch_bounds__(kThreads) void finish_coefficients(const __grid_constant__ Finish f) {
  const int64_t group = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group < f.combination.groups) finish_group(f, group, *f.outer);
}

}  // namespace
}  // namespace customloss::cuda
