// The soft confusion sums of every group, as partial sums of fixed pieces of the tensor, which
// finish.cuh adds up.
#pragma once

#include "walk.cuh"

namespace customloss::cuda {
namespace {

// float32 additions of a thread before they go to float64.
constexpr int kMostAdds = 256;

// Blocks that a multiprocessor must be able to hold, which bounds the registers of a thread.
template <class Io, bool kWeighted>
constexpr int kPlanarBlocks =
    std::is_same_v<typename Io::T, double> || !Io::kContiguous ? 2 : (kWeighted ? 3 : 4);
constexpr int kColumnBlocks = 2;

// Where a kernel leaves its partial sums, and the counter it clears for the next launch.
struct Partials {
  double* sums;
  int64_t sum_stride;  // between tp, fp, fn and tn
  unsigned* ticket;    // null where no block of the next launch asks whether it is the last
};

// Calls body(i, probability, target, weight) for the elements of a packet.
template <class Io, bool kWeighted, class Body>
__device__ __forceinline__ void for_elements(const Pass& pass, const typename Io::Packet& packet,
                                             typename Io::T scale, typename Io::T offset,
                                             const Body& body) {
  if (pass.activation == Activation::kSigmoid) {
#pragma unroll
    for (int i = 0; i < Io::kWidth; ++i) {
      const auto one = Io::template element<kWeighted>(pass, packet, i);
      body(i, probability<Activation::kSigmoid>(one.x, scale, offset), one.t, one.w);
    }
  } else {
#pragma unroll
    for (int i = 0; i < Io::kWidth; ++i) {
      const auto one = Io::template element<kWeighted>(pass, packet, i);
      body(i, probability<Activation::kNone>(one.x, scale, offset), one.t, one.w);
    }
  }
}

// Calls body(i, probability, target, weight) for one element of contiguous operands.
template <class Io, bool kWeighted, class T, class Body>
__device__ __forceinline__ void for_one(const Pass& pass, const Spot& spot, T scale, T offset,
                                        const Body& body, int i = 0) {
  if constexpr (Io::kContiguous) {
    const auto one = Io::template load_one<kWeighted>(pass, spot);
    body(i,
         pass.activation == Activation::kSigmoid
             ? probability<Activation::kSigmoid>(one.x, scale, offset)
             : probability<Activation::kNone>(one.x, scale, offset),
         one.t, one.w);
  }
}

// Partial sums of groups whose elements a team of threads shares.
//   maths   tp += w t p, fp += w (1-t) p, fn += w t q, tn += w (1-t) q
//   launch  one team of cut.lanes threads per unit, kThreads / cut.lanes teams per block
//   bytes   reads input, target and weight once; writes 32 bytes per unit
template <class Io, bool kWeighted>
__global__ __launch_bounds__(kThreads, kPlanarBlocks<Io, kWeighted>) void planar_sums(
    const __grid_constant__ Pass pass, const __grid_constant__ Planar cut,
    const Partials partials) {
  using T = typename Io::T;
  if (partials.ticket != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *partials.ticket = 0;
  const T scale = scale_of<T>(pass), offset = offset_of<T>(pass);
  const bool broadcast = inner(pass).stride[kWeightOperand] == 0;
  Accumulator<T> own;
  double sums[4] = {0.0, 0.0, 0.0, 0.0};
  int adds = 0;
  const auto add = [&own](int, const auto& prob, auto t, T w) {
    own.template add<kWeighted>(prob, t, w);
  };
  const auto added = [&](int more) {
    adds += more;
    if (adds < kMostAdds) return;
    own.flush(sums);
    adds = 0;
  };
  for_stretches<Io>(
      pass, cut, Unit(cut, blockIdx.x),
      [&](const Spot& spot) {
        for_one<Io, kWeighted>(pass, spot, scale, offset, add);
        added(1);
      },
      [&](const Spot& first, int count) {
        for_packets<Io, kWeighted>(pass, cut.step, first, count, broadcast,
                                   [&](const typename Io::Packet& packet, const Spot&) {
                                     for_elements<Io, kWeighted>(pass, packet, scale, offset, add);
                                     added(Io::kWidth);
                                   });
      });
  own.flush(sums);
  if (cut.lanes == kThreads) {
    const double sum = sum_by_warps(sums);
    const int s = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0 && s < 4) {
      partials.sums[s * partials.sum_stride + block_index()] = sum;  // a block is one unit here
    }
    return;
  }
  sum_lanes(sums, cut.lanes);
  const Unit unit(cut, block_index());
  if (unit.exists && (threadIdx.x & (cut.lanes - 1)) == 0) {
    double* to = partials.sums + unit.group * cut.units + unit.unit;
#pragma unroll
    for (int s = 0; s < 4; ++s) to[s * partials.sum_stride] = sums[s];
  }
}

// The columns of one thread: kWidth classes, four sums each.
template <class Io>
struct ColumnSums {
  using T = typename Io::T;
  Accumulator<T> own[Io::kWidth];

  __device__ __forceinline__ T at(int sum, int i) const {
    return sum == 0 ? own[i].tp : sum == 1 ? own[i].fp : sum == 2 ? own[i].fn : own[i].tn;
  }
};

// Adds the columns of a block's threads class by class and writes the band's partial sums.
//   Entry e of class c lies at buffer[e * pitch + c].  A class has cut.fold entries for each of the
//   rows that the block takes at a time.  Its sums go to first + c * stride.
template <class Io, int kRows, class Sums>
__device__ void write_columns(const Columns& cut, const Band& band, const Sums& columns,
                              const Partials& partials, int64_t first, int64_t stride) {
  using T = typename Io::T;
  constexpr int kWidth = Io::kWidth;
  __shared__ T buffer[kThreads * kWidth];
  __shared__ double sums[kRows][kThreads];
  const int tile_columns = cut.tile * kWidth;
  const int pitch = cut.fold > 1 ? static_cast<int>(cut.classes) : tile_columns;
  const int entries = cut.fold > 1 ? cut.slots * cut.fold : cut.slots;
  const int classes = static_cast<int>(min(int64_t{pitch}, cut.classes - band.first_class));
  const int helpers = kThreads / classes;
  const int cls = threadIdx.x % classes, helper = threadIdx.x / classes;
#pragma unroll
  for (int s = 0; s < kRows; ++s) {
    if (static_cast<int>(threadIdx.x) < cut.slots * cut.tile) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) buffer[threadIdx.x * kWidth + i] = columns.at(s, i);
    }
    __syncthreads();
    if (helper < helpers) {
      double sum = 0.0;
      for (int e = helper; e < entries; e += helpers) {
        sum += static_cast<double>(buffer[e * pitch + cls]);
      }
      sums[s][threadIdx.x] = sum;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kRows * classes; i += kThreads) {
    const int s = i / classes, c = i - s * classes;
    double sum = sums[s][c];
    for (int h = 1; h < helpers; ++h) sum += sums[s][h * classes + c];
    partials.sums[s * partials.sum_stride + first + c * stride] = sum;
  }
}

// Partial sums of classes that lie next to each other: [N, C] rows and channels_last.
//   maths   as planar_sums, class by class
//   launch  one block per band of rows and tile of classes; cut.slots rows at a time
//   bytes   reads input, target and weight once; writes 32 bytes per class and band
template <class Io, bool kWeighted>
__global__ __launch_bounds__(kThreads,
                             kColumnBlocks) void column_sums(const __grid_constant__ Pass pass,
                                                             const __grid_constant__ Columns cut,
                                                             const Partials partials) {
  using T = typename Io::T;
  if (partials.ticket != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *partials.ticket = 0;
  const T scale = scale_of<T>(pass), offset = offset_of<T>(pass);
  const bool broadcast = pass.layout.cls.stride[kWeightOperand] == 0;
  ColumnSums<Io> columns;
  const auto add = [&columns](int i, const auto& prob, auto t, T w) {
    columns.own[i].template add<kWeighted>(prob, t, w);
  };
  const Band band(cut, blockIdx.x, Io::kWidth);
  for_rows(pass, cut, band, [&](const Spot& first, int count) {
    for_packets<Io, kWeighted>(pass, cut.step, first, count, broadcast,
                               [&](const typename Io::Packet& packet, const Spot&) {
                                 for_elements<Io, kWeighted>(pass, packet, scale, offset, add);
                               });
  });
  for_tail<Io>(pass, cut, Band(cut, block_index(), Io::kWidth), [&](int i, const Spot& spot) {
    for_one<Io, kWeighted>(pass, spot, scale, offset, add, i);
  });
  const Band to(cut, block_index(), Io::kWidth);
  const int64_t row = to.band * 4 * cut.samples + to.sample;
  write_columns<Io, 4>(cut, to, columns, partials, row * cut.classes + to.first_class, 1);
}

}  // namespace
}  // namespace customloss::cuda
