// The gradient of every element, from the coefficients of its group.
#pragma once

#include "../arguments.h"
#include "forward.cuh"
#include "hidden.cuh"

namespace customloss::cuda {
namespace {

// The gradient by the sums of every group: coefficients[4, samples, classes] times `outer`.
struct GroupGrads {
  const double* coefficients;
  OuterGrad outer;
  int64_t groups, classes;

  template <Wrt kWrt, class T>
  __device__ __forceinline__ Coefficient<T> at(int64_t sample, int64_t cls) const {
    const double* own = coefficients + sample * classes + cls;
    const double g = outer.at(sample, cls);
    return coefficient<T>(kWrt, g * own[0], g * own[groups], g * own[2 * groups],
                          g * own[3 * groups]);
  }
};

template <class Io, class T>
__device__ __forceinline__ void store_one(const Spot& spot, T value) {
  if constexpr (Io::kContiguous) Io::store_one(spot, value);
}

// The gradient of groups whose elements a team of threads shares.
//   maths   dL/dx = w dp/dx [ t a + (1-t) b ], a and b one pair per group (element.h)
//   launch  as planar_sums, last block first: what the forward pass read last is still in L2
//   bytes   reads input, target and weight once; writes the gradient once
template <class Io, Wrt kWrt, bool kWeighted>
__global__ __launch_bounds__(kThreads, kPlanarBlocks<Io, kWeighted>) void planar_gradient(
    const __grid_constant__ Pass pass, const __grid_constant__ Planar cut, const GroupGrads grads) {
  using T = typename Io::T;
  const T scale = scale_of<T>(pass), offset = offset_of<T>(pass);
  const bool broadcast = inner(pass).stride[kWeightOperand] == 0;
  const Unit unit(cut, gridDim.x - 1 - blockIdx.x);
  if (!unit.exists) return;
  const Coefficient<T> g = grads.at<kWrt, T>(unit.sample, unit.cls);
  if (!g.has_influence()) return clear_unit<Io>(pass, cut, unit);
  for_stretches<Io>(
      pass, cut, unit,
      [&](const Spot& spot) {
        for_one<Io, kWeighted>(pass, spot, scale, offset, [&](int, const auto& prob, auto t, T w) {
          store_one<Io>(spot, gradient<kWrt, kWeighted>(prob, t, w, g));
        });
      },
      [&](const Spot& first, int count) {
        for_packets<Io, kWeighted>(pass, cut.step, first, count, broadcast,
                                   [&](const typename Io::Packet& packet, const Spot& spot) {
                                     T out[Io::kWidth];
                                     for_elements<Io, kWeighted>(
                                         pass, packet, scale, offset,
                                         [&](int i, const auto& prob, auto t, T w) {
                                           out[i] = gradient<kWrt, kWeighted>(prob, t, w, g);
                                         });
                                     Io::store(pass, spot, out);
                                   });
      });
}

// The gradient of classes that lie next to each other.
//   maths   as planar_gradient, a and b of kWidth classes in registers
//   launch  as column_sums, last block first
//   bytes   reads input, target and weight once; writes the gradient once
template <class Io, Wrt kWrt, bool kWeighted>
__global__ __launch_bounds__(kThreads, kColumnBlocks) void column_gradient(
    const __grid_constant__ Pass pass, const __grid_constant__ Columns cut,
    const GroupGrads grads) {
  using T = typename Io::T;
  const T scale = scale_of<T>(pass), offset = offset_of<T>(pass);
  const bool broadcast = pass.layout.cls.stride[kWeightOperand] == 0;
  const Band band(cut, gridDim.x - 1 - blockIdx.x, Io::kWidth);
  if (band.steps == 0 && band.tail == 0) return;
  Coefficient<T> g[Io::kWidth];
  unsigned hidden = 0;
  int cls = band.column % static_cast<int>(cut.classes);
#pragma unroll
  for (int i = 0; i < Io::kWidth; ++i) {
    g[i] = grads.at<kWrt, T>(band.sample, cls);
    hidden |= static_cast<unsigned>(!g[i].has_influence()) << i;
    cls = cls + 1 == cut.classes ? 0 : cls + 1;
  }
  for_rows(pass, cut, band, [&](const Spot& first, int count) {
    for_packets<Io, kWeighted>(pass, cut.step, first, count, broadcast,
                               [&](const typename Io::Packet& packet, const Spot& spot) {
                                 T out[Io::kWidth];
                                 for_elements<Io, kWeighted>(
                                     pass, packet, scale, offset,
                                     [&](int i, const auto& prob, auto t, T w) {
                                       out[i] = gradient<kWrt, kWeighted>(prob, t, w, g[i]);
                                     });
                                 hide(hidden, out);
                                 Io::store(pass, spot, out);
                               });
  });
  for_tail<Io>(pass, cut, band, [&](int i, const Spot& spot) {
    for_one<Io, kWeighted>(pass, spot, scale, offset, [&](int, const auto& prob, auto t, T w) {
      T out[1] = {gradient<kWrt, kWeighted>(prob, t, w, g[i])};
      hide(hidden >> i, out);
      store_one<Io>(spot, out[0]);
    });
  });
}

}  // namespace
}  // namespace customloss::cuda
