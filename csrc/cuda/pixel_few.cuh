// Up to 8 classes in planes: a thread owns neighbouring pixels, with all their classes in
// registers.
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

  // Whether vectors of every class begin at vector boundaries.
  static __device__ __forceinline__ bool even(const PixelPass& px, const char* from, int operand) {
    constexpr uintptr_t kBytes = alignof(Vec<In, kWidth>);
    const uintptr_t stride = px.pass.layout.cls.stride[operand] * sizeof(In);
    return ((reinterpret_cast<uintptr_t>(from) | stride) & (kBytes - 1)) == 0;
  }

  __device__ __forceinline__ void load(const PixelPass& px, const Spot& spot, int count) {
    const int64_t stride = px.pass.layout.cls.stride[kInputOperand];
    const In* from = as<In>(spot.in[kInputOperand]);
    const int last = classes(px);
    if (count == kWidth && even(px, spot.in[kInputOperand], kInputOperand)) {
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
          if (c < last && i < count) x[c].put(i, from[c * stride + i]);
        }
      }
    }
    labels_at<kWidth>(px, spot.in[kTargetOperand], count, label);
    const int64_t step = inner(px.pass).stride[kWeightOperand] * px.pass.bytes[kWeightOperand];
    weights_at<In, kWidth>(px, spot.in[kWeightOperand], step, count, weight);
  }

  __device__ __forceinline__ void logits(const PixelPass& px, const Slope& slope, int i,
                                         float (&to)[kClasses]) const {
    const int last = classes(px);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      to[c] = c < last ? slope.sign * widen<float>(x[c].at(i)) : -INFINITY;
    }
  }

  __device__ __forceinline__ bool counts(int i) const { return label[i] >= 0 && weight[i] != 0.0f; }
};

// Calls body(spot, count) for the vectors of a thread in its unit.
template <int kWidth, class Body>
__device__ __forceinline__ void for_few(const PixelPass& px, const PixelCut& cut,
                                        const PixelUnit& unit, const Body& body) {
  const int64_t last = min(unit.unit * cut.chunk + cut.chunk, cut.pieces);
  const int64_t run_size = inner(px.pass).size;
#pragma unroll 1
  for (int64_t at = unit.unit * cut.chunk + threadIdx.x; at < last; at += kThreads) {
    const int64_t run = quotient(at, cut.vectors_per_run, px.wide);
    const int64_t first = (at - run * cut.vectors_per_run) * kWidth;
    const Spot spot = pixel_spot(px, group_spot(px.pass, unit.sample, 0), run * run_size + first);
    body(spot, static_cast<int>(min(run_size - first, int64_t{kWidth})));
  }
}

// The sums over the block's threads, class c in warp c.  A collective.
template <int kClasses>
__device__ __forceinline__ double sum_classes(const float (&of_thread)[kClasses]) {
  static_assert(kClasses <= kWarps);
  __shared__ float values[kClasses][kThreads];
  __syncthreads();  // an earlier call may still be read
#pragma unroll
  for (int c = 0; c < kClasses; ++c) values[c][threadIdx.x] = of_thread[c];
  __syncthreads();
  const int cls = threadIdx.x / kWarp;
  double sum[1] = {0.0};
  for (int i = threadIdx.x % kWarp; i < kThreads && cls < kClasses; i += kWarp) {
    sum[0] += static_cast<double>(values[cls][i]);
  }
  sum_lanes(sum, kWarp);
  return sum[0];
}

// Partial sums of few classes in planes.
//   maths   of every class, over pixels w: of that class tp += p, fn += q, of another fp += p,
//           tn += q; kLogLoss: of that class + (-log p)
//   launch  one block per unit of a sample; a thread takes kWidth pixels at a time
//   bytes   reads logits, class numbers and weights once; writes 8 per row, class and unit
template <class In, int kClasses, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void few_sums(const __grid_constant__ PixelPass px,
                                                        const __grid_constant__ PixelCut cut,
                                                        const Partials partials) {
  using Few = FewPixels<In, kClasses>;
  clear_ticket(partials);
  const Slope slope(px.pass);
  float tp[kClasses] = {}, fp[kClasses] = {}, fn[kClasses] = {}, tn[kClasses] = {};
  [[maybe_unused]] float missed[kClasses] = {};
  for_few<Few::kWidth>(px, cut, PixelUnit(px, cut, blockIdx.x), [&](const Spot& spot, int count) {
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
      float lost = 0.0f;
      if constexpr (kExtra == kLogLoss) lost = w * (log1p_of(softmax.rest) + softmax.missed);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const Shares own(e[c], softmax.rest, softmax.inverse * w, w);
        if (c == label) {
          tp[c] += own.p;
          fn[c] += own.q;
          if constexpr (kExtra == kLogLoss) missed[c] += lost;
        } else {
          fp[c] += own.p;
          tn[c] += own.q;
        }
      }
    }
  });
  double sums[kExtra == kLogLoss ? 5 : 4];
  sums[0] = sum_classes(tp);
  sums[1] = sum_classes(fp);
  sums[2] = sum_classes(fn);
  sums[3] = sum_classes(tn);
  if constexpr (kExtra == kLogLoss) sums[4] = sum_classes(missed);
  const int cls = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp != 0 || cls >= Few::classes(px)) return;
  ClassSums own{sums[0], sums[1], sums[2], sums[3], 0.0};
  if constexpr (kExtra == kLogLoss) own.missed = sums[4];
  write_class<kExtra>(px, cut, partials, PixelUnit(px, cut, block_index()), cls, own);
}

// The gradient by the logits of few classes in planes.
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
  const PixelUnit unit(px, cut, gridDim.x - 1 - blockIdx.x);
  const int last = Few::classes(px);
  if (threadIdx.x < kClasses) {
    slopes[threadIdx.x] = ClassSlopes{};
    if (static_cast<int>(threadIdx.x) < last) {
      slopes[threadIdx.x] = class_slopes<kExtra>(px, grads, unit.sample, threadIdx.x);
    }
  }
  __syncthreads();
  for_few<kWidth>(px, cut, unit, [&](const Spot& spot, int count) {
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
    const int64_t stride = px.pass.layout.cls.stride[kOutOperand];
    In* to = reinterpret_cast<In*>(spot.out);
    const bool whole = count == kWidth && Few::even(px, spot.out, kOutOperand);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      if (c >= last) break;
      if (whole) {
        *reinterpret_cast<Vec<In, kWidth>*>(to + c * stride) = out[c];
        continue;
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i < count) to[c * stride + i] = out[c].at(i);
      }
    }
  });
}

}  // namespace
}  // namespace customloss::cuda
