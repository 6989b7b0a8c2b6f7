// Sums across the threads of a block, always in the same order.  Everything here is a
// collective: all threads of the block call it together.
#pragma once

#include "io.cuh"
#include "partition.h"

namespace customloss::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Adds over aligned teams of `lanes` threads, a power of two up to a warp; every lane gets the
// sum.  A butterfly: both partners add the same two numbers, so all lanes hold the same bits.
template <int kNumbers>
__device__ __forceinline__ void sum_lanes(double (&values)[kNumbers], int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      values[k] += __shfl_xor_sync(kAllLanes, values[k], distance);
    }
  }
}

// Adds over the block; every thread gets the sum.
template <int kNumbers>
__device__ __forceinline__ void sum_block(double (&values)[kNumbers]) {
  __shared__ double of_warp[kNumbers][kWarps];
  sum_lanes(values, kWarp);
  __syncthreads();  // the numbers of an earlier call may still be read
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) of_warp[k][threadIdx.x / kWarp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) {
    values[k] = of_warp[k][0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) values[k] += of_warp[k][warp];
  }
}

// Adds over the block: lane 0 of warp k gets the sum of values[k].  It takes a fraction of the
// additions of sum_block, which matters where float64 is slow.  Called once in a kernel.
template <int kNumbers>
__device__ __forceinline__ double sum_by_warps(const double (&values)[kNumbers]) {
  static_assert(kNumbers <= kWarps);
  __shared__ double of_thread[kNumbers][kThreads];
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) of_thread[k][threadIdx.x] = values[k];
  __syncthreads();
  const int number = threadIdx.x / kWarp;
  double sum[1] = {0.0};
  if (number >= kNumbers) return 0.0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum[0] += of_thread[number][i * kWarp + threadIdx.x % kWarp];
  sum_lanes(sum, kWarp);
  return sum[0];
}

template <class F>
__device__ __forceinline__ bool is_set(F flag) {
#if defined(__CUDA_ARCH__)
  return flag;
#else
  return flag.bits != 0;
#endif
}

// The four sums of one thread.  A hard target adds to two of them only.  These are two predicated
// additions; with selects each sum would take two instructions, a select and an addition.
template <class T>
struct Accumulator {
  T tp = T(0), fp = T(0), fn = T(0), tn = T(0);

  template <bool kWeighted>
  __device__ __forceinline__ void add(const Probability<T>& prob, Flag<T> t, T w) {
    const T wp = weigh<kWeighted>(prob.p, w);
    const T wq = weigh<kWeighted>(prob.q, w);
    if (is_set(t)) {
      tp += wp;
      fn += wq;
    } else {
      fp += wp;
      tn += wq;
    }
  }

  template <bool kWeighted>
  __device__ __forceinline__ void add(const Probability<T>& prob, T t, T w) {
    const Share<T> own = share<kWeighted>(prob.p, prob.q, t, w);
    tp += own.tp;
    fp += own.fp;
    fn += own.fn;
    tn += own.tn;
  }

  __device__ __forceinline__ void flush(double (&sums)[4]) {
    sums[0] += static_cast<double>(tp);
    sums[1] += static_cast<double>(fp);
    sums[2] += static_cast<double>(fn);
    sums[3] += static_cast<double>(tn);
    *this = Accumulator();
  }
};

}  // namespace
}  // namespace customloss::cuda
