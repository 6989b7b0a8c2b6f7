// Up to 8 classes in planes, or up to 4 in rows without gaps: a thread owns neighbouring pixels,
// with all their classes in registers.
#pragma once

#include "pixel_io.cuh"

namespace customloss::cuda {
namespace {

// The pixels of one thread as they lie in memory.  kClasses is at least the number of classes.
template <class In, int kClasses>
struct FewPixels {
  static constexpr int kWidth = few_width(kClasses, sizeof(In));
  static constexpr bool kExact = kClasses <= 4;

  Vec<In, kWidth> x[kClasses];
  int label[kWidth];
  float weight[kWidth];

  static __device__ __forceinline__ int classes(const PixelPass& px) {
    return kExact ? kClasses : px.classes;
  }

  // Whether the vectors of every class, or those of rows, begin at vector boundaries.
  static __device__ __forceinline__ bool even(const PixelPass& px, const char* from, int operand) {
    constexpr uintptr_t kBytes = alignof(Vec<In, kWidth>);
    const uintptr_t stride = px.rows ? 0 : px.pass.layout.cls.stride[operand] * sizeof(In);
    return ((reinterpret_cast<uintptr_t>(from) | stride) & (kBytes - 1)) == 0;
  }

  // Reorders a thread's elements between vectors of one class each and rows, pixel by pixel.
  using Vectors = Vec<In, kWidth>[kClasses];
  static __device__ __forceinline__ void turn(const Vectors& from, bool to_rows, Vectors& to) {
#pragma unroll
    for (int c = 0; c < kClasses; ++c) to[c] = Vec<In, kWidth>();
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const int at = i * kClasses + c;
        if (to_rows) {
          to[at / kWidth].put(at % kWidth, from[c].at(i));
        } else {
          to[c].put(i, from[at / kWidth].at(at % kWidth));
        }
      }
    }
  }

  __device__ __forceinline__ void load(const PixelPass& px, const Spot& spot, int count) {
    const int64_t stride = px.pass.layout.cls.stride[kInputOperand];
    const int64_t next = kExact ? inner(px.pass).stride[kInputOperand] : 1;
    const In* from = as<In>(spot.in[kInputOperand]);
    const int last = classes(px);
    const bool whole = count == kWidth && even(px, spot.in[kInputOperand], kInputOperand);
    if (kExact && px.rows && whole) {
      Vectors rows;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        rows[c] = reinterpret_cast<const Vec<In, kWidth>*>(from)[c];
      }
      turn(rows, false, x);
    } else if (whole) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        if (c < last) x[c] = *reinterpret_cast<const Vec<In, kWidth>*>(from + c * stride);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        x[c] = Vec<In, kWidth>();
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (c < last && i < count) x[c].put(i, from[c * stride + i * next]);
        }
      }
    }
    labels_at<kWidth>(px, spot.in[kTargetOperand], count, label);
    const int64_t step = inner(px.pass).stride[kWeightOperand] * px.pass.bytes[kWeightOperand];
    weights_at<In, kWidth>(px, spot.in[kWeightOperand], step, count, weight);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) weight[i] = weight_by(label[i], weight[i]);
  }

  static __device__ __forceinline__ void store(const PixelPass& px, const Spot& spot, int count,
                                               const Vectors& out) {
    const int64_t stride = px.pass.layout.cls.stride[kOutOperand];
    const int64_t next = kExact ? inner(px.pass).stride[kOutOperand] : 1;
    In* to = reinterpret_cast<In*>(spot.out);
    const int last = classes(px);
    const bool whole = count == kWidth && even(px, spot.out, kOutOperand);
    if (kExact && px.rows && whole) {
      Vectors rows;
      turn(out, true, rows);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) reinterpret_cast<Vec<In, kWidth>*>(to)[c] = rows[c];
      return;
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      if (c >= last) break;
      if (whole) {
        *reinterpret_cast<Vec<In, kWidth>*>(to + c * stride) = out[c];
        continue;
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i < count) to[c * stride + i * next] = out[c].at(i);
      }
    }
  }

  __device__ __forceinline__ void logits(const PixelPass& px, const Slope& slope, int i,
                                         float (&to)[kClasses]) const {
    const int last = classes(px);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      to[c] = c < last ? slope.sign * widen<float>(x[c].at(i)) : -INFINITY;
    }
  }

  __device__ __forceinline__ bool counts(int i) const {
    return label[i] != kNoClass && weight[i] != 0.0f;
  }
};

// Calls body(spot, count) for the vectors of a thread in the unit of block `block()`.  That is
// called anew for every run, because the loop over a run has no register to keep it in.
template <int kWidth, class Block, class Body>
__device__ __forceinline__ void for_few(const PixelPass& px, const PixelCut& cut,
                                        const Block& block, const Body& body) {
  const int64_t run_size = inner(px.pass).size;
  int done = threadIdx.x;
#pragma unroll 1
  while (true) {
    const PixelUnit unit(px, cut, block());
    const int64_t at = unit.unit * cut.chunk + done;
    const int64_t last = min(unit.unit * cut.chunk + cut.chunk, cut.pieces);
    if (at >= last) break;
    const int64_t run = quotient(at, cut.vectors_per_run, px.wide);
    const int64_t vector = at - run * cut.vectors_per_run, first = vector * kWidth;
    const int64_t vectors = min(cut.vectors_per_run - vector, last - at);
    const int steps = static_cast<int>((vectors + kThreads - 1) / kThreads);
    done += steps * kThreads;
    Spot spot = pixel_spot(px, group_spot(px.pass, unit.sample, 0), run * run_size + first);
    // pixels from here to the end of the thread's last vector
    const int64_t span = int64_t{steps - 1} * kThreads * kWidth + kWidth;
#pragma unroll 1
    for (int left = static_cast<int>(min(run_size - first, span)); left > 0;
         left -= kThreads * kWidth) {
      body(spot, min(left, kWidth));
      spot.move(cut.step, 1);
    }
  }
}

// Adds kRows numbers of every class over the block's threads: sums[row][class], in shared memory.
// A collective, called once in a kernel.  It takes at most 24 KiB for the numbers of the threads.
template <int kRows, int kClasses>
__device__ __forceinline__ const double* sum_classes(const float (&of_thread)[kRows][kClasses]) {
  constexpr int kAtOnce = kRows < 24 / kClasses ? kRows : 24 / kClasses;
  __shared__ float values[kAtOnce * kClasses][kThreads];
  __shared__ double sums[kRows * kClasses];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int first = 0; first < kRows; first += kAtOnce) {
    if (first > 0) __syncthreads();
#pragma unroll
    for (int row = first; row < min(first + kAtOnce, kRows); ++row) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        values[(row - first) * kClasses + c][threadIdx.x] = of_thread[row][c];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = warp; i < min(kAtOnce, kRows - first) * kClasses; i += kWarps) {
      double sum[1] = {0.0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum[0] += static_cast<double>(values[i][w * kWarp + lane]);
      sum_lanes(sum, kWarp);
      if (lane == 0) sums[first * kClasses + i] = sum[0];
    }
  }
  __syncthreads();
  return sums;
}

// Partial sums of few classes.
//   maths   for every class: pixels of that class add w p to tp, w q to fn and, for kLogLoss,
//           w (-log p); pixels of another class add w p to fp and w q to tn
//   launch  one block per unit of a sample; a thread takes kWidth pixels at a time
//   bytes   reads logits, class numbers and weights once; writes 8 per row, class and unit
template <class In, int kClasses, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void few_sums(const __grid_constant__ PixelPass px,
                                                        const __grid_constant__ PixelCut cut,
                                                        const Partials partials) {
  using Few = FewPixels<In, kClasses>;
  clear_ticket(partials);
  const Slope slope(px.pass);
  constexpr int kRows = kExtra == kLogLoss ? 5 : 4;
  float own[kRows][kClasses] = {};  // tp, fp, fn, tn, and -log p of the class
  for_few<Few::kWidth>(px, cut, block_index, [&](const Spot& spot, int count) {
    Few few;
    few.load(px, spot, count);
#pragma unroll
    for (int i = 0; i < Few::kWidth; ++i) {
      if (!few.counts(i)) continue;
      float e[kClasses], sums[2] = {};
      Alone alone;
      few.logits(px, slope, i, e);
      const int label = few.label[i];
      const float w = few.weight[i];
      const Softmax softmax = softmax_of<kClasses, kExtra>(e, kClasses, slope.size, label, alone,
                                                           sums, [](int, bool) {});
      float true_loss = 0.0f;
      if constexpr (kExtra == kLogLoss) {
        true_loss = w * (log1p_of(softmax.rest, softmax.inverse) + softmax.true_gap);
      }
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const Shares shares(e[c], softmax.rest, softmax.inverse * w, w);
        if (c == label) {
          own[0][c] += shares.p;
          own[2][c] += shares.q;
          if constexpr (kExtra == kLogLoss) own[4][c] += true_loss;
        } else {
          own[1][c] += shares.p;
          own[3][c] += shares.q;
        }
      }
    }
  });
  const double* sums = sum_classes(own);
  const int cls = threadIdx.x;
  if (cls >= Few::classes(px)) return;
  ClassSums of_class{sums[cls], sums[kClasses + cls], sums[2 * kClasses + cls],
                     sums[3 * kClasses + cls], 0.0};
  if constexpr (kExtra == kLogLoss) of_class.true_loss = sums[4 * kClasses + cls];
  write_class<kExtra>(px, cut, partials, PixelUnit(px, cut, block_index()), cls, of_class);
}

// The gradient by the logits of few classes.
//   maths   scale w [ p (u - sum p u) + p (sum of other h) - q h ], u and h of pixel.h
//   launch  as few_sums, last block first: what the forward pass read last is still in L2
//   bytes   reads logits, class numbers and weights once; writes the gradient once
template <class In, int kClasses, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void few_gradient(const __grid_constant__ PixelPass px,
                                                            const __grid_constant__ PixelCut cut,
                                                            const PixelGrads grads) {
  using Few = FewPixels<In, kClasses>;
  constexpr int kWidth = Few::kWidth;
  __shared__ ClassSlopes slopes[kClasses];
  const Slope slope(px.pass);
  const auto block = [] { return gridDim.x - 1 - block_index(); };
  const PixelUnit unit(px, cut, block());
  const int last = Few::classes(px);
  if (threadIdx.x < kClasses) {
    slopes[threadIdx.x] = ClassSlopes{};
    if (static_cast<int>(threadIdx.x) < last) {
      slopes[threadIdx.x] = class_slopes<kExtra>(px, grads, unit.sample, threadIdx.x);
    }
  }
  __syncthreads();
  for_few<kWidth>(px, cut, block, [&](const Spot& spot, int count) {
    Few few;
    few.load(px, spot, count);
    Vec<In, kWidth> out[kClasses];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (!few.counts(i)) continue;
      float e[kClasses], sums[2] = {};
      Alone alone;
      few.logits(px, slope, i, e);
      const int label = few.label[i];
      float shift = 0.0f;
      const Softmax softmax = softmax_of<kClasses, 0>(
          e, kClasses, slope.size, label, alone, sums, [&](int c, bool top) {
            if (top) shift = c == label ? slopes[c].u_on : slopes[c].u_off;
          });
      float dot = 0.0f, slope_sum = 0.0f;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const bool on = c == label;
        dot += e[c] * softmax.inverse * ((on ? slopes[c].u_on : slopes[c].u_off) - shift);
        if constexpr (kExtra == kLogLoss) slope_sum += on ? slopes[c].h_on : slopes[c].h_off;
      }
      const float factor = px.pass.scale32 * few.weight[i];
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const bool on = c == label;
        const Shares own(e[c], softmax.rest, softmax.inverse, 1.0f);
        const float u = (on ? slopes[c].u_on : slopes[c].u_off) - shift;
        const float h = on ? slopes[c].h_on : slopes[c].h_off;
        out[c].put(i, static_cast<In>(factor * choice_gradient<kExtra>(own, u, h, dot, slope_sum)));
      }
    }
    few.store(px, spot, count, out);
  });
}

}  // namespace
}  // namespace customloss::cuda
