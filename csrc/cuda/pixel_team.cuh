// Teams of neighbouring threads that share a pixel, through shared memory.  These functions are
// collectives of the block.
#pragma once

#include "pixel_io.cuh"

namespace customloss::cuda {
namespace {

// The largest value of a team and where it is; of several, the first.
template <class T>
__device__ __forceinline__ void team_largest(T* value, int* where, int lanes) {
  __shared__ T values[kThreads];
  __shared__ int places[kThreads];
  const int self = threadIdx.x, lane = self & (lanes - 1);
  for (int half = lanes / 2; half > 0; half /= 2) {
    values[self] = *value;
    places[self] = *where;
    __syncthreads();
    if (lane < half) {
      const T other = values[self + half];
      const int place = places[self + half];
      const bool first = other > *value || (other == *value && place < *where);
      *value = first ? other : *value;
      *where = first ? place : *where;
    }
    __syncthreads();
  }
  if (lanes == 1) return;
  values[self] = *value;
  places[self] = *where;
  __syncthreads();
  *value = values[self - lane];
  *where = places[self - lane];
  __syncthreads();
}

template <int kNumbers>
__device__ __forceinline__ void team_sum(double (&numbers)[kNumbers], int lanes) {
  __shared__ double values[kNumbers][kThreads];
  if (lanes == 1) return;
  const int self = threadIdx.x, lane = self & (lanes - 1);
  for (int half = lanes / 2; half >= 0; half /= 2) {
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) values[k][self] = numbers[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      if (half == 0) {
        numbers[k] = values[k][self - lane];
      } else if (lane < half) {
        numbers[k] += values[k][self + half];
      }
    }
    __syncthreads();
    if (half == 0) break;
  }
}

}  // namespace
}  // namespace customloss::cuda
