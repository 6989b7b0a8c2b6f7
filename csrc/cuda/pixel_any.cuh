// Any number of classes, any strides, dtypes, targets and sums: for a softmax a pass over the
// pixels, and then one over the elements.
#pragma once

#include <type_traits>

#include "pixel_io.cuh"
#include "pixel_team.cuh"

namespace customloss::cuda {
namespace {

// What the pass over pixels leaves: numbers[kPixelStats][samples * pixels].
enum PixelStat : int {
  kLargest,  // max of sign * x
  kRest,     // sum of e without the first largest
  kTop,      // the first largest class
  kState,    // one of PixelState
  kShift,    // w u of the first largest class
  kDot,      // sum of p (w u - shift)
  kHeight,   // sum of w h
};
enum PixelState : int {
  kNothing,  // neither sums nor gradients
  kCounts,
  kUnweighted,  // every weight is 0: only the gradient by the weight remains
};

template <class T>
struct PixelStats {
  T* numbers;
  int64_t stride;

  __device__ __forceinline__ T* at(PixelStat which, int64_t pixel) const {
    return numbers + which * stride + pixel;
  }
};

// The numbers of a pass in the type that it computes in.
template <class T>
struct AnyNumbers {
  T scale, offset, sign, size;
  Smoothing<T> smoothing;
  Focal<T> focal;

  __device__ __forceinline__ explicit AnyNumbers(const PixelPass& px)
      : scale(static_cast<T>(px.pass.scale)),
        offset(static_cast<T>(px.pass.offset)),
        sign(px.pass.scale < 0.0 ? T(-1) : T(1)),
        size(scale * sign),
        smoothing(rounded<T>(px.smoothing)),
        focal{static_cast<T>(px.focal.gamma), px.focal.split} {}
};

// An element as it is read.
template <class T>
struct AnyElement {
  T x, w;
  Target<T> target;
  bool known;  // its target counts, or is refused

  __device__ __forceinline__ AnyElement(const PixelPass& px, const AnyNumbers<T>& with,
                                        const Spot& spot, int cls) {
    const Pass& pass = px.pass;
    const uint64_t bits = load_bits(spot.in[kInputOperand], pass.bytes[kInputOperand]);
    w = weight_at<T>(px, spot.in[kWeightOperand]);
    if (px.labels) {
      const int label = label_at(px, spot.in[kTargetOperand]);
      known = label != kNoClass;
      w = weight_by(label, w);
      target = hard_target(with.smoothing, label == cls);
    } else {
      const uint64_t own = load_bits(spot.in[kTargetOperand], pass.bytes[kTargetOperand]);
      const T raw = number<T>(pass.dtype[kTargetOperand], own);
      known = !px.ignored.holds(raw) && !(px.ignores_nan && raw != raw);
      target = soft_target(with.smoothing, raw);
    }
    x = number<T>(pass.dtype[kInputOperand], bits);
  }
};

template <class T>
__device__ __forceinline__ bool is_finite(T value) {
  return value - value == T(0);
}

// Where a row of kExtra is among the rows that were asked for, or -1.
template <unsigned kExtra>
__device__ __forceinline__ int asked_row(unsigned extra, int row) {
  if (row < 4) return row;
  int place = -1;
#pragma unroll
  for (unsigned flag = 1; flag <= kEveryExtra; flag *= 2) {
    const int first = row_of(kExtra, flag);
    const bool inside = (kExtra & flag) != 0 && row >= first && row < first + rows_of(flag) - 4;
    if (inside && (extra & flag)) place = row_of(extra, flag) + row - first;
  }
  return place;
}

// The gradient by the sums of a class, in the order of the rows of kExtra; 0 for sums that were not
// asked for.  For a gradient by the input or the target the first four are those of
// combine_grads().
template <unsigned kExtra, class T>
__device__ __forceinline__ void load_grads(const PixelPass& px, const PixelGrads& grads,
                                           int64_t sample, int cls, Wrt wrt,
                                           T (&to)[rows_of(kExtra)]) {
  const auto at = [&](int row) { return grads.at(row, sample, cls); };
  double first[4];
  if (wrt == Wrt::kWeight) {
#pragma unroll
    for (int row = 0; row < 4; ++row) first[row] = at(row);
  } else {
    combine_grads(wrt, px.extra, at, first);
  }
#pragma unroll
  for (int row = 0; row < rows_of(kExtra); ++row) {
    const int own = asked_row<kExtra>(px.extra, row);
    to[row] = row < 4   ? static_cast<T>(first[row])
              : own < 0 ? T(0)
                        : static_cast<T>(grads.at(own, sample, cls));
  }
}

// The outcome of a class of a softmax.
template <class T>
__device__ __forceinline__ Outcome<T> choice(const AnyNumbers<T>& with, T x, T largest, T rest,
                                             bool top) {
  const T below = with.size * (largest - with.sign * x);
  const T e = exp_minus(below), whole = T(1) + rest, inverse = reciprocal(whole);
  Outcome<T> result(T(0), T(0));
  result.p = e * inverse;
  // for each of several largest classes, `rest` is the sum of the others
  result.q = (below == T(0) ? rest : whole - e) * inverse;
  result.positive = log1p_of(rest) + below;
  result.negative = T(0);
  result.decided = top;
  return result;
}

// Adds numbers in short runs of type T, and the runs in double.
template <class T>
struct RunSum {
  static constexpr int kMostAdds = 128;
  T run = T(0);
  double sum = 0.0;
  int adds = 0;

  __device__ __forceinline__ void add(T value) {
    run += value;
    if (++adds == kMostAdds) total();
  }
  __device__ __forceinline__ double total() {
    sum += static_cast<double>(run);
    run = T(0);
    adds = 0;
    return sum;
  }
};

// The softmax of every pixel, and what its classes' gradients have in common.
//   maths   largest z, sum of the other exponentials; shift, dot and sum of h (pixel.h)
//   launch  `lanes` threads per pixel: neighbouring classes of a row, or all classes in turn
//   bytes   reads logits twice, targets and weights once, and all of them once more for a gradient;
//           writes 4 numbers per pixel, or kPixelStats for a gradient
template <class T, bool kGradient, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void any_stats(const __grid_constant__ PixelPass px,
                                                         const int lanes, const PixelStats<T> stats,
                                                         const PixelGrads grads) {
  const AnyNumbers<T> with(px);
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t pixel = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  const bool exists = pixel < px.samples * px.pixels;
  const int64_t sample = exists ? quotient(pixel, px.pixels, px.wide) : 0;
  const Spot start =
      exists ? pixel_spot(px, group_spot(px.pass, sample, 0), pixel - sample * px.pixels) : Spot{};
  const int last = exists ? px.classes : 0;
  const auto spot_of = [&](int cls) {
    Spot spot = start;
    move(px.pass, px.pass.layout.cls, cls, &spot);
    return spot;
  };
  const auto logit = [&](int cls) {
    const uint64_t bits = load_bits(spot_of(cls).in[kInputOperand], px.pass.bytes[kInputOperand]);
    return number<T>(px.pass.dtype[kInputOperand], bits);
  };

  T largest = -INFINITY;
  int top = 0x7fffffff;
#pragma unroll 2
  for (int c = lane; c < last; c += lanes) {
    const T z = with.sign * logit(c);
    if (z > largest) {
      largest = z;
      top = c;
    }
  }
  team_largest(&largest, &top, lanes);

  RunSum<T> rest;
  int weighed = 0, unusable = 0;
#pragma unroll 1
  for (int c = lane; c < last; c += lanes) {
    const AnyElement<T> own(px, with, spot_of(c), c);
    weighed += own.w != T(0);
    unusable += !own.known || !is_finite(own.target.given);
    if (c != top) rest.add(exp_minus(with.size * (largest - with.sign * own.x)));
  }
  double counts[3] = {rest.total(), static_cast<double>(weighed), static_cast<double>(unusable)};
  team_sum(counts, lanes);
  const T others = static_cast<T>(counts[0]);
  bool known = true;
  if (exists && px.labels) known = label_at(px, start.in[kTargetOperand]) != kNoClass;
  const bool usable = others == others && counts[2] == 0.0;
  const int state = !known             ? kNothing
                    : counts[1] != 0.0 ? kCounts
                    : usable           ? kUnweighted
                                       : kNothing;
  if (exists && lane == 0) {
    *stats.at(kLargest, pixel) = largest;
    *stats.at(kRest, pixel) = others;
    *stats.at(kTop, pixel) = static_cast<T>(top);
    *stats.at(kState, pixel) = static_cast<T>(state);
  }
  if constexpr (kGradient) {
    const auto slopes_at = [&](int cls, const AnyElement<T>& own, Outcome<T>* outcome) {
      T g[rows_of(kExtra)];
      load_grads<kExtra>(px, grads, sample, cls, Wrt::kInput, g);
      *outcome = choice(with, own.x, largest, others, cls == top);
      Slopes<T> weighed = slopes<Activation::kSoftmax, kExtra>(*outcome, own.target, with.focal, g);
      const T w = has_influence(g) ? own.w : T(0);
      weighed.u = times(w, weighed.u);
      weighed.h = times(w, weighed.h);
      return weighed;
    };
    Outcome<T> outcome(T(0), T(0));
    T shift = T(0);
    if (top < last) {
      const AnyElement<T> own(px, with, spot_of(top), top);
      shift = slopes_at(top, own, &outcome).u;
    }
    RunSum<T> dot, height;
#pragma unroll 1
    for (int c = lane; c < last; c += lanes) {
      const AnyElement<T> own(px, with, spot_of(c), c);
      const Slopes<T> slope = slopes_at(c, own, &outcome);
      dot.add(outcome.p * (slope.u - shift));
      height.add(slope.h);
    }
    double totals[2] = {dot.total(), height.total()};
    team_sum(totals, lanes);
    if (exists && lane == 0) {
      *stats.at(kShift, pixel) = shift;
      *stats.at(kDot, pixel) = static_cast<T>(totals[0]);
      *stats.at(kHeight, pixel) = static_cast<T>(totals[1]);
    }
  }
}

// ---- over the elements -------------------------------------------------------------------------

// A thread's class and pixels.  Neighbouring threads have neighbouring classes if these lie
// together in memory, else neighbouring pixels.
struct AnyThread {
  int64_t sample, unit, first, last;
  int cls, spot, class_lane;
  bool exists;

  __device__ __forceinline__ AnyThread(const PixelPass& px, const PixelCut& cut, int64_t block) {
    const PixelUnit own(px, cut, block);
    sample = own.sample;
    unit = own.unit;
    const int thread = threadIdx.x;
    if (px.pass.layout.cls.stride[kInputOperand] == 1) {
      class_lane = thread & (cut.team - 1);
      spot = thread >> cut.team_bits;
    } else {
      spot = thread & (cut.spots - 1);
      class_lane = thread >> cut.spots_bits;
    }
    const int64_t of_all = own.tile * cut.team + class_lane;
    exists = of_all < px.classes;
    cls = static_cast<int>(of_all);
    first = own.unit * cut.chunk + spot;
    last = exists ? min(own.unit * cut.chunk + cut.chunk, px.pixels) : int64_t{0};
  }
};

// Computes the outcome of an element; returns its PixelState, kNothing without an outcome.
template <Activation kActivation, unsigned kExtra, class T>
__device__ __forceinline__ int any_outcome(const AnyNumbers<T>& with, const PixelStats<T>& stats,
                                           int64_t pixel, int cls, const AnyElement<T>& own,
                                           Outcome<T>* result) {
  if constexpr (kActivation == Activation::kSoftmax) {
    const int state = static_cast<int>(*stats.at(kState, pixel));
    if (state != kNothing) {
      *result = choice(with, own.x, *stats.at(kLargest, pixel), *stats.at(kRest, pixel),
                       static_cast<T>(cls) == *stats.at(kTop, pixel));
    }
    return state;
  } else {
    if (!own.known) return kNothing;
    *result = outcome<kActivation, kExtra>(own.x, with.scale, with.offset);
    if (own.w != T(0)) return kCounts;
    const bool usable = is_finite(own.target.given) &&
                        (kActivation == Activation::kNone ? is_finite(own.x) : own.x == own.x);
    return usable ? kUnweighted : kNothing;
  }
}

// Partial sums of any elements.
//   maths   shares of pixel.h, times the weight
//   launch  one block per unit of a sample and tile of classes; a thread has one class
//   bytes   reads all operands once, and 16 per element of a softmax; writes 8 per row, class, unit
template <class T, Activation kActivation, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void any_sums(const __grid_constant__ PixelPass px,
                                                        const __grid_constant__ PixelCut cut,
                                                        const PixelStats<T> stats,
                                                        const Partials partials) {
  constexpr int kRows = rows_of(kExtra), kMostAdds = 256;
  constexpr bool kRuns = !std::is_same_v<T, double>;  // float is added in short runs
  __shared__ double shared[kThreads];
  clear_ticket(partials);
  const AnyNumbers<T> with(px);
  T own[kRows] = {};
  double sums[kRows] = {};
  {
    const AnyThread thread(px, cut, blockIdx.x);
    Spot start = group_spot(px.pass, thread.sample, 0);
    move(px.pass, px.pass.layout.cls, thread.cls, &start);
    [[maybe_unused]] int adds = 0;
#pragma unroll 1
    for (int64_t at = thread.first; at < thread.last; at += cut.spots) {
      const AnyElement<T> element(px, with, pixel_spot(px, start, at), thread.cls);
      Outcome<T> outcome(T(0), T(0));
      const int state = any_outcome<kActivation, kExtra>(
          with, stats, thread.sample * px.pixels + at, thread.cls, element, &outcome);
      if (state == kCounts && element.w != T(0)) {
        T share[kRows];
        shares<kActivation, kExtra>(outcome, element.target, with.focal, share);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          if constexpr (kRuns) {
            own[row] += element.w * share[row];
          } else {
            sums[row] += element.w * share[row];
          }
        }
      }
      if constexpr (kRuns) {
        if (++adds < kMostAdds) continue;
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          sums[row] += static_cast<double>(own[row]);
          own[row] = T(0);
        }
        adds = 0;
      }
    }
  }
  const AnyThread thread(px, cut, block_index());
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int to = asked_row<kExtra>(px.extra, row);
    if (to < 0) continue;
    const int place = thread.class_lane * cut.spots + thread.spot;
    double sum = sums[row] + static_cast<double>(own[row]);
    for (int half = cut.spots / 2; half > 0; half /= 2) {
      shared[place] = sum;
      __syncthreads();
      if (thread.spot < half) sum += shared[place + half];
      __syncthreads();
    }
    if (thread.spot == 0 && thread.exists) {
      const int64_t group = thread.sample * px.classes + thread.cls;
      partials.sums[to * partials.sum_stride + group * cut.units + thread.unit] = sum;
    }
  }
}

template <class T>
__device__ __forceinline__ void store_any(const PixelPass& px, const Spot& spot, T value) {
  const T values[1] = {value};
  Any<T>::store(px.pass, spot, values);
}

// The gradient of any elements by any operand.
//   maths   input_gradient, target_gradient, weight_gradient of pixel.h; of a softmax
//           scale [ p (w u - shift - dot) + p (sum of other h) - q h ]
//   launch  as any_sums, last block first
//   bytes   reads all operands once, and 28 per element of a softmax; writes the gradient once
template <class T, Activation kActivation, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void any_gradient(const __grid_constant__ PixelPass px,
                                                            const __grid_constant__ PixelCut cut,
                                                            const PixelStats<T> stats,
                                                            const PixelGrads grads, const Wrt wrt) {
  const AnyNumbers<T> with(px);
  const AnyThread thread(px, cut, gridDim.x - 1 - blockIdx.x);
  if (thread.first >= thread.last) return;
  T g[rows_of(kExtra)];
  load_grads<kExtra>(px, grads, thread.sample, thread.cls, wrt, g);
  // the logits of a softmax are part of other classes, which may count
  const bool influence = has_influence(g);
  const bool mixed = kActivation == Activation::kSoftmax && wrt == Wrt::kInput;
  Spot start = group_spot(px.pass, thread.sample, 0);
  move(px.pass, px.pass.layout.cls, thread.cls, &start);
#pragma unroll 1
  for (int64_t at = thread.first; at < thread.last; at += cut.spots) {
    const Spot spot = pixel_spot(px, start, at);
    if (!influence && !mixed) {
      store_any(px, spot, T(0));
      continue;
    }
    const int64_t pixel = thread.sample * px.pixels + at;
    const AnyElement<T> own(px, with, spot, thread.cls);
    Outcome<T> outcome(T(0), T(0));
    const int state =
        any_outcome<kActivation, kExtra>(with, stats, pixel, thread.cls, own, &outcome);
    T out = T(0);
    if (wrt == Wrt::kWeight) {
      if (state != kNothing) {
        out = weight_gradient<kActivation, kExtra>(outcome, own.target, with.focal, g);
      }
    } else if (state == kCounts && wrt == Wrt::kTarget) {
      out = times(own.w, target_gradient<kActivation, kExtra>(outcome, own.target, with.smoothing,
                                                              with.focal, g));
    } else if (state == kCounts) {
      const Slopes<T> slope = slopes<kActivation, kExtra>(outcome, own.target, with.focal, g);
      const T w = influence ? own.w : T(0);
      if constexpr (kActivation == Activation::kSoftmax) {
        const T u = times(w, slope.u) - *stats.at(kShift, pixel);
        out = outcome.p * (u - *stats.at(kDot, pixel));
        if constexpr ((kExtra & (kLogLoss | kFocal)) != 0) {
          const T h = times(w, slope.h);
          out += outcome.p * (*stats.at(kHeight, pixel) - h) - outcome.q * h;
        }
        out *= with.scale;
      } else {
        out = times(w, input_gradient<kActivation, kExtra>(outcome, slope, with.scale));
      }
    }
    store_any(px, spot, out);
  }
}

// ---- from partial sums to sums -----------------------------------------------------------------

// The sums alone: `parts` partial sums that lie together become one number.
//   launch  a team of `lanes` threads per sum
//   bytes   reads 8 per part, writes 8 per sum
__global__ __launch_bounds__(kThreads) void pool_sums(const double* from, double* to,
                                                      const int64_t sums, const int64_t parts,
                                                      const int lanes) {
  const int64_t own = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  double sum[1] = {0.0};
  if (own < sums) {
#pragma unroll 4
    for (int64_t i = threadIdx.x & (lanes - 1); i < parts; i += lanes)
      sum[0] += from[own * parts + i];
  }
  sum_lanes(sum, lanes);
  if (own < sums && (threadIdx.x & (lanes - 1)) == 0) to[own] = sum[0];
}

}  // namespace
}  // namespace customloss::cuda
