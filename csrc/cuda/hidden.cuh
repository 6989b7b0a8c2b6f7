// The gradient of groups on which the loss does not depend: zeros, whatever the elements hold.  A
// product with the zeros that are the gradient by their sums would be NaN where an element is.
#pragma once

#include "walk.cuh"

namespace customloss::cuda {
namespace {

// Writes zeros to all elements of a thread in a unit.
template <class Io>
__device__ __forceinline__ void clear_unit(const Pass& pass, const Planar& cut, const Unit& unit) {
  using T = typename Io::T;
  for_stretches<Io>(
      pass, cut, unit,
      [&](const Spot& spot) {
        if constexpr (Io::kContiguous) Io::store_one(spot, T(0));
      },
      [&](const Spot& first, int count) {
        const T zeros[Io::kWidth] = {};
        Spot spot = first;
        for (; count > 0; --count) {
          Io::store(pass, spot, zeros);
          spot.move(cut.step, 1);
        }
      });
}

// Puts zeros where bit i of `hidden` is set.
template <int kWidth, class T>
__device__ __forceinline__ void hide(unsigned hidden, T (&out)[kWidth]) {
  if (hidden == 0) return;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = (hidden >> i & 1u) != 0 ? T(0) : out[i];
}

}  // namespace
}  // namespace customloss::cuda
