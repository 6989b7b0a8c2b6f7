// Up to 256 classes of any strides: a team of threads owns a pixel, with all its classes in
// registers, and every exponential is computed once.
//
//   planes            a team is 1 to 8 threads `spots` apart: neighbouring threads have
//                     neighbouring pixels
//   classes in rows   a team is 2 to 32 lanes: neighbouring threads have neighbouring classes
#pragma once

#include "pixel_io.cuh"

namespace customloss::cuda {
namespace {

// What a thread has of one pixel: classes first, first + cut.team, ...
template <class In, int kClasses>
struct TilePixel {
  In x[kClasses];
  uint64_t target_bits, weight_bits;  // as they lie in memory: nothing waits for them yet
  bool exists;
  int label;  // kNoClass if the pixel does not count
  float weight;

  // Called where the loads have to be complete.
  __device__ __forceinline__ void decode(const PixelPass& px) {
    weight = exists ? weight_of<In>(px, weight_bits) : 0.0f;
    label = weight == 0.0f ? kNoClass : label_of(px, target_bits);
    weight = weight_by(label, weight);
  }
};

// A thread's place in its team and in the tile.
template <bool kRows, int kMost>
struct TileThread {
  using Team = std::conditional_t<kRows, LaneTeam, BlockTeam<kMost>>;
  int spot, first, count;  // the pixel of a tile; the first class, and how many
  Team team;

  template <class Buffer>
  __device__ __forceinline__ TileThread(const PixelPass& px, const PixelCut& cut, Buffer* buffer) {
    const int thread = threadIdx.x;
    if constexpr (kRows) {
      spot = thread >> cut.team_bits;
      first = thread & (cut.team - 1);
      team = {cut.team};
    } else {
      spot = thread & (cut.spots - 1);
      first = thread >> cut.spots_bits;
      team = {buffer, cut.team, cut.spots, spot, 0};
    }
    count = (px.classes - first + cut.team - 1) >> cut.team_bits;
  }

  // Which of this thread's classes it is, or -1.
  __device__ __forceinline__ int slot_of(const PixelCut& cut, int label) const {
    const bool mine = label >= 0 && (label & (cut.team - 1)) == first;
    return mine ? label >> cut.team_bits : -1;
  }
};

// Classes of a thread that are skipped together where it has fewer than kClasses.
template <int kClasses>
constexpr int kSkip = kClasses == kTileRow ? 1 : 8;

// Reads a pixel; `*out`: where its gradient goes.
template <class In, int kClasses>
__device__ __forceinline__ void load_pixel(const PixelPass& px, const PixelCut& cut, int64_t sample,
                                           int64_t index, int first, int count,
                                           TilePixel<In, kClasses>* to, In** out = nullptr) {
  to->exists = index < px.pixels;
  to->target_bits = to->weight_bits = 0;
  if (!to->exists) return;
  const Spot spot = pixel_spot(px, group_spot(px.pass, sample, 0), index);
  const int64_t stride = px.pass.layout.cls.stride[kInputOperand];
  const In* from = as<In>(spot.in[kInputOperand]) + first * stride;
  const int64_t step = stride * cut.team;
  for_classes<kClasses, kSkip<kClasses>>(cut.most, [&](int k) {
    if (k < count) to->x[k] = *from;
    from += step;
  });
  to->target_bits = load_bits(spot.in[kTargetOperand], px.pass.bytes[kTargetOperand]);
  if (px.pass.data[kWeightOperand] != nullptr) {
    to->weight_bits = load_bits(spot.in[kWeightOperand], px.pass.bytes[kWeightOperand]);
  }
  if (out != nullptr) {
    *out = reinterpret_cast<In*>(spot.out) + first * px.pass.layout.cls.stride[kOutOperand];
  }
}

// Logits for softmax_of; zeros if the pixel does not count.
template <class In, int kClasses>
__device__ __forceinline__ void tile_logits(const PixelCut& cut,
                                            const TilePixel<In, kClasses>& pixel,
                                            const Slope& slope, int count, float (&to)[kClasses]) {
  for_classes<kClasses, kSkip<kClasses>>(cut.most, [&](int k) {
    const float x = pixel.label < 0 ? 0.0f : slope.sign * widen<float>(pixel.x[k]);
    to[k] = k < count ? x : -INFINITY;
  });
}

// Partial sums of up to 256 classes.
//   maths   as few_sums; from the first phase to the second a tile holds p, or -q where q < p
//   launch  one block per unit of a sample, tile by tile: first a team per pixel computes its
//           softmax, then a thread per class (and share of the pixels) adds, while the next tile is
//           being loaded
//   bytes   reads logits, class numbers and weights once; writes 8 per row, class and unit
template <class In, int kClasses, bool kRows, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void tile_sums(const __grid_constant__ PixelPass px,
                                                         const __grid_constant__ PixelCut cut,
                                                         const Partials partials) {
  constexpr int kSums = kExtra == kLogLoss ? 5 : 4, kMostAdds = 256;
  __shared__ float tile[kThreads * (kClasses + 1)];
  __shared__ float of_team[kRows ? 1 : 2][2][kThreads];
  __shared__ double of_share[kThreads];
  __shared__ int labels[kThreads];
  __shared__ float weights[kThreads];
  __shared__ float true_loss[kExtra == kLogLoss ? kThreads : 1];
  clear_ticket(partials);
  const Slope slope(px.pass);
  TileThread<kRows, 2> thread(px, cut, of_team);
  const PixelUnit unit(px, cut, blockIdx.x);
  const int64_t first_tile = unit.unit * cut.chunk;
  int steps = static_cast<int>(min(cut.chunk, cut.pieces - first_tile));
  int64_t index = first_tile * cut.spots + thread.spot;
  const int pitch = px.classes | 1;  // odd, so that neither pixels nor classes share a bank
  // the second phase: `shares` threads per class
  const int shares = kThreads / px.classes;
  const int cls = threadIdx.x % px.classes, share = threadIdx.x / px.classes;
  const int adds_of_tile = (cut.spots + shares - 1) / shares;
  const int own_adds = share < shares ? (cut.spots - share + shares - 1) / shares : 0;

  float own[kSums] = {};
  double sums[kSums] = {};
  int adds = 0;
  TilePixel<In, kClasses> pixel;
  load_pixel(px, cut, unit.sample, index, thread.first, thread.count, &pixel);
#pragma unroll 1
  for (; steps > 0; --steps) {
    pixel.decode(px);
    float e[kClasses], of_pixel[2] = {};
    const int slot = thread.slot_of(cut, pixel.label);
    tile_logits(cut, pixel, slope, thread.count, e);
    const Softmax softmax = softmax_of<kSkip<kClasses>, kExtra>(
        e, cut.most, slope.size, slot, thread.team, of_pixel, [](int, bool) {});
    const float p = softmax.inverse, q = softmax.rest * softmax.inverse;
    const float top = q < p ? -q : p;
    float* to = tile + thread.spot * pitch + thread.first;
    for_classes<kClasses, kSkip<kClasses>>(cut.most, [&](int k) {
      if (k < thread.count) *to = e[k] == 1.0f ? top : e[k] * softmax.inverse;
      to += cut.team;
    });
    if (thread.first == 0) {
      labels[thread.spot] = pixel.label;
      weights[thread.spot] = pixel.label == kNoClass ? 0.0f : pixel.weight;
    }
    if constexpr (kExtra == kLogLoss) {
      if (slot >= 0) {
        true_loss[thread.spot] = log1p_of(softmax.rest, softmax.inverse) + softmax.true_gap;
      }
    }
    __syncthreads();
    index += cut.spots;
    if (steps > 1) {
      load_pixel(px, cut, unit.sample, index, thread.first, thread.count, &pixel);
    }
    {
      int i = share;
#pragma unroll 4
      for (int left = own_adds; left > 0; --left, i += shares) {
        const float small = tile[i * pitch + cls], w = weights[i];
        const bool complement = bit_cast<uint32_t>(small) >> 31 != 0;
        const float least = complement ? -small : small, most = 1.0f - least;
        const float wp = w * (complement ? most : least), wq = w * (complement ? least : most);
        if (labels[i] == cls) {
          own[0] += wp;
          own[2] += wq;
          if constexpr (kExtra == kLogLoss) own[4] += w * true_loss[i];
        } else {
          own[1] += wp;
          own[3] += wq;
        }
      }
    }
    adds += adds_of_tile;
    if (adds + adds_of_tile > kMostAdds || steps == 1) {
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        sums[s] += static_cast<double>(own[s]);
        own[s] = 0.0f;
      }
      adds = 0;
    }
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    of_share[threadIdx.x] = sums[s];
    __syncthreads();
    if (share == 0) {
      for (int other = 1; other < shares; ++other) {
        sums[s] += of_share[other * px.classes + cls];
      }
    }
    __syncthreads();
  }
  if (share == 0) {
    ClassSums of_class{sums[0], sums[1], sums[2], sums[3], 0.0};
    if constexpr (kExtra == kLogLoss) of_class.true_loss = sums[4];
    write_class<kExtra>(px, cut, partials, PixelUnit(px, cut, block_index()), cls, of_class);
  }
}

// The gradient by the logits of up to 256 classes.
//   maths   as few_gradient
//   launch  as tile_sums, last block first; the teams alone, with nothing to add over pixels
//   bytes   reads logits, class numbers and weights once; writes the gradient once
template <class In, int kClasses, bool kRows, unsigned kExtra>
__global__ __launch_bounds__(kThreads, 2) void tile_gradient(const __grid_constant__ PixelPass px,
                                                             const __grid_constant__ PixelCut cut,
                                                             const PixelGrads grads) {
  constexpr int kDots = kExtra == kLogLoss ? 2 : 1;
  __shared__ float of_team[kRows ? 1 : 2][3][kThreads];
  static_assert(kThreads == kTileClasses);
  __shared__ ClassSlopes slopes[kTileClasses];  // 0 beyond the last class
  const Slope slope(px.pass);
  TileThread<kRows, 3> thread(px, cut, of_team);
  const PixelUnit unit(px, cut, gridDim.x - 1 - blockIdx.x);
  const int cls = threadIdx.x;
  slopes[cls] =
      cls < px.classes ? class_slopes<kExtra>(px, grads, unit.sample, cls) : ClassSlopes{};
  __syncthreads();
  const int64_t first_tile = unit.unit * cut.chunk;
  int steps = static_cast<int>(min(cut.chunk, cut.pieces - first_tile));
  int64_t index = first_tile * cut.spots + thread.spot;
#pragma unroll 1
  for (; steps > 0; --steps, index += cut.spots) {
    TilePixel<In, kClasses> pixel;
    In* to = nullptr;
    load_pixel(px, cut, unit.sample, index, thread.first, thread.count, &pixel, &to);
    pixel.decode(px);
    float e[kClasses], of_pixel[3] = {};
    const int slot = thread.slot_of(cut, pixel.label);
    const ClassSlopes* const mine = slopes + thread.first;
    tile_logits(cut, pixel, slope, thread.count, e);
    const Softmax softmax = softmax_of<kSkip<kClasses>, 0>(
        e, cut.most, slope.size, slot, thread.team, of_pixel, [&](int k, bool top) {
          const ClassSlopes& own = mine[k << cut.team_bits];
          if (top) of_pixel[2] += k == slot ? own.u_on : own.u_off;
        });
    // of several largest classes, the mean
    const float shift = of_pixel[2] / of_pixel[1];
    float dots[kDots] = {};
    const ClassSlopes* own = slopes + thread.first;
    for_classes<kClasses, kSkip<kClasses>>(cut.most, [&](int k) {
      const float u = k == slot ? own->u_on : own->u_off;
      // beyond the last class e and the slopes are 0
      dots[0] += e[k] * softmax.inverse * (u - shift);
      if constexpr (kExtra == kLogLoss) dots[1] += k == slot ? own->h_on : own->h_off;
      own += cut.team;
    });
    thread.team.sum(dots);
    if (index >= px.pixels) continue;
    const int64_t step = px.pass.layout.cls.stride[kOutOperand] * cut.team;
    const float factor = px.pass.scale32 * pixel.weight;
    own = slopes + thread.first;
    for_classes<kClasses, kSkip<kClasses>>(cut.most, [&](int k) {
      const Shares shares(e[k], softmax.rest, softmax.inverse, 1.0f);
      const float u = (k == slot ? own->u_on : own->u_off) - shift;
      const float h = k == slot ? own->h_on : own->h_off;
      const float dx = factor * choice_gradient<kExtra>(shares, u, h, dots[0], dots[kDots - 1]);
      if (k < thread.count) *to = static_cast<In>(pixel.label == kNoClass ? 0.0f : dx);
      to += step;
      own += cut.team;
    });
  }
}

}  // namespace
}  // namespace customloss::cuda
