// From sums to a loss and its gradient by them, where classes may have weights and a pointwise loss
// may stand beside the score: the device twin of CompoundLoss in average.h.
//
// A single slice of groups (rows.cuh) is the work of one block from beginning to end.  With more of
// them, a first launch leaves four numbers per slice, and every block of a second launch adds these
// up for itself: no block waits for another, and nothing has to be cleared beforehand.
#pragma once

#include "rows.cuh"

namespace customloss::cuda {

constexpr int kSlots = 1024;  // groups that a slice has room for

struct Compound : Rows {
  Pointwise pointwise;
  const double* sums;          // [kinds, groups]
  const double* class_weight;  // [2, width], of the score and of the pointwise loss; or null
  double* coefficients;        // [kinds, groups]
  int64_t groups;
  int kinds;
  double* means;  // [rows, 4]    numbers of whole rows for the second launch, null without one
};

namespace {

// Added over groups: weighted losses, weights, and the two sums of the pointwise loss.  Added over
// rows: averages, how many of the rows count, and the same two sums.
enum Number : int { kTotal, kWeight, kNumerator, kDivisor, kNumbers };
using Numbers = double[kNumbers];

__device__ __forceinline__ void copy(const Numbers& from, Numbers& to) {
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) to[k] = from[k];
}

struct CompoundGroup {
  int64_t group, cls;
  int row;  // of the slice
};

struct CompoundSlice {
  int64_t row, first_class, first;  // the first row, class and group
  int count, width;                 // groups of the slice; of a row, or 0 if it is a segment

  __device__ __forceinline__ CompoundSlice(const Compound& f, int64_t index) {
    const bool whole = f.segments == 1;
    row = whole ? index * f.rows_per_slice : index / f.segments;
    first_class = whole ? 0 : (index - row * f.segments) * kSlots;
    first = row * f.width + first_class;
    width = whole ? static_cast<int>(f.width) : 0;
    count = static_cast<int>(whole ? min(f.rows_per_slice, f.rows - row) * f.width
                                   : min(int64_t{kSlots}, f.width - first_class));
  }
  __device__ __forceinline__ CompoundGroup at(int i) const {
    const int row = width == 0 ? 0 : i / width;
    return {first + i, first_class + i - row * width, row};
  }
};

__device__ __forceinline__ GroupLoss loss_of(const Compound& f, const CompoundGroup& at) {
  const double* own = f.sums + at.group;
  return group_loss(f.scoring.score, {own[0], own[f.groups], own[2 * f.groups], own[3 * f.groups]});
}

__device__ __forceinline__ double score_weight(const Compound& f, const CompoundGroup& at) {
  return f.class_weight == nullptr ? 1.0 : f.class_weight[at.cls];
}

__device__ __forceinline__ double pointwise_weight(const Compound& f, const CompoundGroup& at) {
  return f.class_weight == nullptr ? 1.0 : f.class_weight[f.width + at.cls];
}

__device__ __forceinline__ void group_numbers(const Compound& f, const CompoundGroup& at,
                                              Numbers& to) {
  if (f.pointwise.score_weight != 0.0) {
    const GroupLoss loss = loss_of(f, at);
    to[kWeight] = group_weight(f.scoring.average, loss, score_weight(f, at));
    if (to[kWeight] != 0.0) to[kTotal] = to[kWeight] * loss.value;
  }
  if (f.pointwise.present()) {
    const Lost own = group_lost(f.pointwise, f.sums, f.groups, at.group, pointwise_weight(f, at));
    to[kNumerator] = own.numerator;
    to[kDivisor] = own.divisor;
  }
}

__device__ __forceinline__ void add_row(const Numbers& row, Numbers& total) {
  const Mean mean = mean_of(row[kTotal], row[kWeight]);
  total[kTotal] += mean.value;
  total[kWeight] += mean.weight != 0.0 ? 1.0 : 0.0;
  total[kNumerator] += row[kNumerator];
  total[kDivisor] += row[kDivisor];
}

// ---- the loss and the gradient ---------------------------------------------------------------

__device__ __forceinline__ void write_compound(const Compound& f, int64_t at, double score,
                                               const Numbers& over) {
  const double weight = f.pointwise.score_weight;
  const double own = weight != 0.0 ? weight * score : 0.0;
  write_loss(f, at, own + whole_lost(f.pointwise, over[kNumerator], over[kDivisor]).ratio());
}

__device__ __forceinline__ void write_row_loss(const Compound& f, int64_t row,
                                               const Numbers& numbers) {
  if (f.scoring.reduction != Reduction::kNone) return;
  write_compound(f, row, mean_of(numbers[kTotal], numbers[kWeight]).value, numbers);
}

__device__ __forceinline__ void write_total_loss(const Compound& f, const Numbers& total) {
  const Reduction reduction = f.scoring.reduction;
  if (reduction == Reduction::kNone) return;
  write_compound(f, 0, row_share(reduction, total[kWeight]) * total[kTotal], total);
}

// What the gradient of a group needs to know of other groups.
struct Others {
  Mean mean;     // of its row
  double outer;  // the weight of the row in the loss
  Lost all;      // the two sums of its pointwise loss

  __device__ __forceinline__ Others(const Compound& f, const Numbers& row, const Numbers& total)
      : mean(mean_of(row[kTotal], row[kWeight])),
        outer(f.pointwise.score_weight * row_share(f.scoring.reduction, total[kWeight])) {
    const bool by_row = f.scoring.reduction == Reduction::kNone;
    // Each number is chosen by itself: a choice of arrays would put both on the stack.
    all = whole_lost(f.pointwise, by_row ? row[kNumerator] : total[kNumerator],
                     by_row ? row[kDivisor] : total[kDivisor]);
  }
};

// The gradient by all sums of a group.
__device__ __forceinline__ void write_gradient(const Compound& f, const CompoundGroup& at,
                                               const Others& others) {
  Sums grad{0.0, 0.0, 0.0, 0.0};
  if (f.pointwise.score_weight != 0.0) {
    grad = averaged_grad(f.scoring.average, loss_of(f, at), score_weight(f, at), others.mean.value,
                         others.mean.weight, others.outer);
  }
  double* to = f.coefficients + at.group;
  to[0] = grad.tp;
  to[f.groups] = grad.fp;
  to[2 * f.groups] = grad.fn;
  to[3 * f.groups] = grad.tn;
  for (int kind = 4; kind < f.kinds; ++kind) to[kind * f.groups] = 0.0;
  if (!f.pointwise.present()) return;
  add_pointwise_grad(f.pointwise, others.all, pointwise_weight(f, at), f.coefficients, f.groups,
                     at.group);
}

// ---- over the groups of a block --------------------------------------------------------------

// Keeps the numbers of a whole row for the gradients of its groups, and writes the loss of the row.
__device__ __forceinline__ void keep_row(const Compound& f, const CompoundSlice& slice, int row,
                                         const Numbers& numbers,
                                         double (&values)[kNumbers][kSlots]) {
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) {
    values[k][row * slice.width] = numbers[k];
    if (f.means != nullptr) f.means[kNumbers * (slice.row + row) + k] = numbers[k];
  }
  write_row_loss(f, slice.row + row, numbers);
}

// Adds the numbers of a slice, over its rows or over the groups of its segment; a collective.
//   values  room for the numbers of every group; afterwards those of a row are at its first group
__device__ __forceinline__ void slice_numbers(const Compound& f, const CompoundSlice& slice,
                                              double (&values)[kNumbers][kSlots], Numbers& total) {
  const bool single = f.rows_per_slice == 1;
  Numbers own = {};
  for (int i = threadIdx.x; i < slice.count; i += kThreads) {
    Numbers group = {};
    group_numbers(f, slice.at(i), group);
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      own[k] += group[k];
      if (!single) values[k][i] = group[k];
    }
  }
  if (!single) {
    __syncthreads();
    add_rows(f, slice.count / slice.width, values, [&](int row, const Numbers& numbers) {
      keep_row(f, slice, row, numbers, values);
      add_row(numbers, total);
    });
    sum_block(total);
    return;
  }
  sum_block(own);
  if (f.segments > 1) return copy(own, total);
  add_row(own, total);
  if (threadIdx.x == 0) keep_row(f, slice, 0, own, values);
  __syncthreads();
}

// Everything, if there is one slice; else only the numbers of each slice.
//   maths   score.h, group by group; the averages of average.h, added in a fixed order
//   launch  one block per slice
//   bytes   reads 8 per sum; writes as many if there is one slice, else 32 per slice
__global__ __launch_bounds__(kThreads) void score_sums(const __grid_constant__ Compound f) {
  __shared__ double values[kNumbers][kSlots];
  const CompoundSlice slice(f, blockIdx.x);
  Numbers total = {};
  slice_numbers(f, slice, values, total);
  if (f.slices > 1) {
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) f.stats[kNumbers * int64_t{blockIdx.x} + k] = total[k];
    return;
  }
  if (threadIdx.x == 0) write_total_loss(f, total);
  for (int i = threadIdx.x; i < slice.count; i += kThreads) {
    const CompoundGroup at = slice.at(i);
    Numbers row;
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) row[k] = values[k][at.row * slice.width];
    write_gradient(f, at, Others(f, row, total));
  }
}

// The loss and the gradient from the numbers of several slices.
//   launch  blocks that go through the slices together; each adds up the numbers of all
//   bytes   reads and writes 8 per sum; reads 32 per slice in every block
__global__ __launch_bounds__(kThreads, 2) void score_gradient(const __grid_constant__ Compound f) {
  Numbers total = {};
  if (f.scoring.reduction != Reduction::kNone) {
    if (f.segments == 1) {
      add_slices(f, total);
    } else {
      add_segments<kNumbers>(f, [&](int64_t, const Numbers& row) { add_row(row, total); });
    }
    sum_block(total);
    if (blockIdx.x == 0 && threadIdx.x == 0) write_total_loss(f, total);
  }
  for (int64_t index = blockIdx.x; index < f.slices; index += gridDim.x) {
    const CompoundSlice slice(f, index);
    Numbers row = {};
    if (f.segments > 1) {
      for (int64_t i = threadIdx.x; i < f.segments; i += kThreads) {
#pragma unroll
        for (int k = 0; k < kNumbers; ++k) {
          row[k] += f.stats[kNumbers * (slice.row * f.segments + i) + k];
        }
      }
      sum_block(row);
      if (threadIdx.x == 0 && slice.first_class == 0) write_row_loss(f, slice.row, row);
    }
    Others others(f, row, total);
    for (int i = threadIdx.x; i < slice.count; i += kThreads) {
      const CompoundGroup at = slice.at(i);
      if (f.segments == 1) {
#pragma unroll
        for (int k = 0; k < kNumbers; ++k) row[k] = f.means[kNumbers * (slice.row + at.row) + k];
        others = Others(f, row, total);
      }
      write_gradient(f, at, others);
    }
  }
}

}  // namespace
}  // namespace customloss::cuda
