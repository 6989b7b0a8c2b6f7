// What the kernels of pixels share: where a pixel lies, its class number and weight, the gradient
// by the sums, and the softmax of a thread or of a team of threads.
#pragma once

#include <cmath>

#include "forward.cuh"
#include "pixel_plan.h"

namespace customloss::cuda {
namespace {

// ---- places -----------------------------------------------------------------------------

// A unit of a sample, from the number of a block.
struct PixelUnit {
  int64_t sample, unit, tile;

  __device__ __forceinline__ PixelUnit(const PixelPass& px, const PixelCut& cut, int64_t block) {
    const int64_t stripe = quotient(block, cut.class_tiles, px.wide);
    tile = block - stripe * cut.class_tiles;
    sample = quotient(stripe, cut.units, px.wide);
    unit = stripe - sample * cut.units;
  }
};

// The first class of a sample's `index`-th pixel.
__device__ __forceinline__ Spot pixel_spot(const PixelPass& px, Spot spot, int64_t index) {
  const Layout& layout = px.pass.layout;
#pragma unroll 1
  for (int axis = layout.reduced_axes - 1; axis > 0; --axis) {
    const int64_t outer = quotient(index, layout.reduced[axis].size, px.wide);
    move(px.pass, layout.reduced[axis], index - outer * layout.reduced[axis].size, &spot);
    index = outer;
  }
  move(px.pass, layout.reduced[0], index, &spot);
  return spot;
}

// ---- class numbers and weights -------------------------------------------------------------

// What stands for a class number that does not count, and for one that is refused: nothing can be
// raised here, so its pixel gets a weight of NaN (weight_by()).
constexpr int kNoClass = -1, kRefused = -2;

template <class E>
__device__ __forceinline__ int class_or_none(const PixelPass& px, E own) {
  using Bits = std::conditional_t<sizeof(E) == 8, uint64_t, uint32_t>;
  const bool known = static_cast<Bits>(own) < static_cast<Bits>(px.classes);
  const bool ignored = px.ignored.has(static_cast<int64_t>(own));
  const int other = px.refuses && !ignored ? kRefused : kNoClass;
  return known && !ignored ? static_cast<int>(own) : other;
}

// The weight of an element with this class number.  A weight of 0 removes what is refused, too.
template <class T>
__device__ __forceinline__ T weight_by(int label, T weight) {
  return label == kRefused && weight != T(0) ? static_cast<T>(NAN) : weight;
}

__device__ __forceinline__ int label_of(const PixelPass& px, uint64_t bits) {
  switch (px.pass.dtype[kTargetOperand]) {
    case Dtype::kInt8: return class_or_none(px, static_cast<int8_t>(bits));
    case Dtype::kInt16: return class_or_none(px, static_cast<int16_t>(bits));
    case Dtype::kInt32: return class_or_none(px, static_cast<int32_t>(bits));
    default: return class_or_none(px, bits);
  }
}
__device__ __forceinline__ int label_at(const PixelPass& px, const char* from) {
  return label_of(px, load_bits(from, px.pass.bytes[kTargetOperand]));
}

template <class E, int kWidth>
__device__ __forceinline__ void labels_as(const PixelPass& px, const char* from, int count,
                                          int (&to)[kWidth]) {
  if (count == kWidth) {
    const Vec<E, kWidth> vec = load_vec<E, kWidth>(as<E>(from));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = class_or_none(px, vec.at(i));
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      to[i] = i < count ? class_or_none(px, as<E>(from)[i]) : kNoClass;
    }
  }
}

// Class numbers of `count` neighbouring pixels, of the dtypes of direct_labels().
template <int kWidth>
__device__ __forceinline__ void labels_at(const PixelPass& px, const char* from, int count,
                                          int (&to)[kWidth]) {
  switch (px.pass.dtype[kTargetOperand]) {
    case Dtype::kUInt8: return labels_as<uint8_t, kWidth>(px, from, count, to);
    case Dtype::kInt8: return labels_as<int8_t, kWidth>(px, from, count, to);
    case Dtype::kInt16: return labels_as<int16_t, kWidth>(px, from, count, to);
    case Dtype::kInt32: return labels_as<int32_t, kWidth>(px, from, count, to);
    default: return labels_as<int64_t, kWidth>(px, from, count, to);
  }
}

// Weights `step` bytes apart, of the dtypes of direct_weight().
template <class In, int kWidth>
__device__ __forceinline__ void weights_at(const PixelPass& px, const char* from, int64_t step,
                                           int count, float (&to)[kWidth]) {
  const auto read = [&](auto of) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      to[i] = 0.0f;
      if (i < count) to[i] = widen<float>(*as<decltype(of)>(from + i * step));
    }
  };
  if (px.pass.data[kWeightOperand] == nullptr) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = i < count ? 1.0f : 0.0f;
    return;
  }
  switch (px.pass.dtype[kWeightOperand]) {
    case Dtype::kBool:
    case Dtype::kUInt8: return read(uint8_t());
    case Dtype::kFloat32: return read(float());
    default: return read(In());
  }
}

// A weight from its bits; 1 where there are no weights.
template <class In>
__device__ __forceinline__ float weight_of(const PixelPass& px, uint64_t bits) {
  if (px.pass.data[kWeightOperand] == nullptr) return 1.0f;
  using Bits = typename Vec<In, 1>::Bits;
  switch (px.pass.dtype[kWeightOperand]) {
    case Dtype::kBool:
    case Dtype::kUInt8: return widen<float>(static_cast<uint8_t>(bits));
    case Dtype::kFloat32: return bit_cast<float>(static_cast<uint32_t>(bits));
    default: return widen<float>(bit_cast<In>(static_cast<Bits>(bits)));
  }
}

template <class T>
__device__ __forceinline__ T weight_at(const PixelPass& px, const char* from) {
  if (px.pass.data[kWeightOperand] == nullptr) return T(1);
  const uint64_t bits = load_bits(from, px.pass.bytes[kWeightOperand]);
  return number<T>(px.pass.dtype[kWeightOperand], bits);
}

// ---- the gradient by the sums ----------------------------------------------------------------

// coefficients[rows, samples, classes] times the incoming gradient.
struct PixelGrads {
  const double* coefficients;
  OuterGrad outer;
  int64_t groups, classes;  // classes 1 where all of them are one group

  __device__ __forceinline__ double at(int row, int64_t sample, int64_t cls) const {
    const int64_t own = classes == 1 ? 0 : cls;
    return outer.at(sample, own) * coefficients[row * groups + sample * classes + own];
  }
};

// u and h (pixel.h) of a class, at pixels of that class (on) and at pixels of another (off).
struct ClassSlopes {
  float u_on, u_off, h_on, h_off;
};

template <unsigned kExtra>
__device__ __forceinline__ ClassSlopes class_slopes(const PixelPass& px, const PixelGrads& grads,
                                                    int64_t sample, int cls) {
  const double positive = grads.at(0, sample, cls) - grads.at(2, sample, cls);
  const double negative = grads.at(1, sample, cls) - grads.at(3, sample, cls);
  double log = 0.0;
  if constexpr (kExtra == kLogLoss) log = grads.at(row_of(kLogLoss, kLogLoss), sample, cls);
  const auto& [on, off, log_on, log_off] = px.smoothing;
  return {static_cast<float>(on * positive + (1.0 - on) * negative),
          static_cast<float>(off * positive + (1.0 - off) * negative),
          static_cast<float>(log_on * log), static_cast<float>(log_off * log)};
}

// ---- teams --------------------------------------------------------------------------------

// A thread that has its pixel for itself.
struct Alone {
  __device__ __forceinline__ float largest(float value) { return value; }
  template <int kNumbers>
  __device__ __forceinline__ void sum(float (&)[kNumbers]) {}
};

// Neighbouring lanes, a power of two of them.
struct LaneTeam {
  int lanes;

  __device__ __forceinline__ float largest(float value) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, value, distance);
      value = other > value ? other : value;
    }
    return value;
  }
  template <int kNumbers>
  __device__ __forceinline__ void sum(float (&values)[kNumbers]) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) {
        const float other = __shfl_xor_sync(kAllLanes, values[k], distance);
        values[k] += other;
      }
    }
  }
};

// Threads `spots` apart.  They use two buffers in turn, so that a barrier lies between reading one
// and writing it again.
template <int kMost>
struct BlockTeam {
  float (*buffer)[kMost][kThreads];  // [2]
  int threads, spots, spot, turn;

  __device__ __forceinline__ float largest(float value) {
    if (threads == 1) return value;
    float (&own)[kThreads] = buffer[turn][0];
    turn ^= 1;
    own[threadIdx.x] = value;
    __syncthreads();
    for (int other = 0; other < threads; ++other) {
      const float theirs = own[other * spots + spot];
      value = theirs > value ? theirs : value;
    }
    return value;
  }
  template <int kNumbers>
  __device__ __forceinline__ void sum(float (&values)[kNumbers]) {
    static_assert(kNumbers <= kMost);
    if (threads == 1) return;
    float (&own)[kMost][kThreads] = buffer[turn];
    turn ^= 1;
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) own[k][threadIdx.x] = values[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      values[k] = own[k][spot];
      for (int other = 1; other < threads; ++other) values[k] += own[k][other * spots + spot];
    }
  }
};

// ---- the softmax of a pixel ------------------------------------------------------------------

// Calls body(k) for the classes of a thread, `most` or a few more of them; all threads of a launch
// have the same `most`.
template <int kClasses, int kStep, class Body>
__device__ __forceinline__ void for_classes(int most, const Body& body) {
#pragma unroll
  for (int first = 0; first < kClasses; first += kStep) {
    if (first > 0 && first >= most) break;
#pragma unroll
    for (int k = first; k < first + kStep; ++k) body(k);
  }
}

// Turns logits into distances below the largest: sign * x is largest where scale * x is, and `size`
// is the absolute value of scale.
struct Slope {
  float sign, size;
  __device__ __forceinline__ explicit Slope(const Pass& pass)
      : sign(pass.scale32 < 0.0f ? -1.0f : 1.0f), size(pass.scale32 * sign) {}
};

struct Softmax {
  float rest, inverse;  // 1 / (1 + rest)
  float true_gap;       // of this thread's classes: how far the true one is below the largest
};

// Replaces sign * x by e; for classes that do not exist x is -inf.  The e of largest classes are 1.
// They are counted, not added to the others, so that nothing small is lost beside a 1; all but one
// of them then count in `rest`.
//   also(k, top) is called for every class of the thread
template <int kStep, unsigned kExtra, int kClasses, int kSums, class Team, class Also>
__device__ __forceinline__ Softmax softmax_of(float (&e)[kClasses], int most, float size,
                                              int label_slot, Team& team, float (&sums)[kSums],
                                              const Also& also) {
  static_assert(kSums >= 2);
  float largest = -INFINITY;
  for_classes<kClasses, kStep>(most, [&](int k) { largest = e[k] > largest ? e[k] : largest; });
  largest = team.largest(largest);
  Softmax result{};
  for_classes<kClasses, kStep>(most, [&](int k) {
    const float below = size * (largest - e[k]);
    e[k] = exp_minus(below);
    const bool top = e[k] == 1.0f;
    if (top) {
      sums[1] += 1.0f;
    } else {
      sums[0] += e[k];
    }
    if constexpr (kExtra == kLogLoss) {
      if (k == label_slot) result.true_gap = below;
    }
    also(k, top);
  });
  team.sum(sums);
  result.rest = sums[0] + (sums[1] - 1.0f);
  result.inverse = reciprocal(1.0f + result.rest);
  return result;
}

// p and q = 1 - p of a class.  The q of a largest class is the sum of the other p; any other p is
// at most 1/2, so that 1 - p does not cancel.  `unit` is 1, or a weight that is already in
// `inverse`.
struct Shares {
  float p, q;
  __device__ __forceinline__ Shares(float e, float rest, float inverse, float unit)
      : p(e * inverse), q(e == 1.0f ? rest * inverse : unit - e * inverse) {}
};

// dL/dx of a class at weight 1 and scale 1: p (u - shift - dot) + p (sum of other h) - q h.  `u`
// has the shift subtracted already.
template <unsigned kExtra>
__device__ __forceinline__ float choice_gradient(const Shares& own, float u, float h, float dot,
                                                 float slope) {
  float dx = own.p * (u - dot);
  if constexpr (kExtra == kLogLoss) dx += own.p * (slope - h) - own.q * h;
  return dx;
}

// The four sums of a class and its log loss, from sums over pixels of that class and of others.
struct ClassSums {
  double tp, fp, fn, tn, true_loss;
};

// Writes the partial sums of a class.  They are linear in t, so the smoothing is applied here.
template <unsigned kExtra>
__device__ __forceinline__ void write_class(const PixelPass& px, const PixelCut& cut,
                                            const Partials& partials, const PixelUnit& unit,
                                            int cls, const ClassSums& own) {
  double* to = partials.sums + (unit.sample * px.classes + cls) * cut.units + unit.unit;
  double values[rows_of(kExtra)] = {own.tp, own.fp, own.fn, own.tn};
  const double on = px.smoothing.on, off = px.smoothing.off;
  if (off != 0.0) {
    values[0] = on * own.tp + off * own.fp;
    values[1] = (1.0 - on) * own.tp + (1.0 - off) * own.fp;
    values[2] = on * own.fn + off * own.tn;
    values[3] = (1.0 - on) * own.fn + (1.0 - off) * own.tn;
  }
  if constexpr (kExtra == kLogLoss) values[4] = own.true_loss;
  // A refused pixel is one of the others of every class; its NaN is one of all sums.
  const bool refused = own.tn != own.tn;
#pragma unroll
  for (int row = 0; row < rows_of(kExtra); ++row) {
    to[row * partials.sum_stride] = refused ? own.tn : values[row];
  }
}

__device__ __forceinline__ void clear_ticket(const Partials& partials) {
  if (partials.ticket != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *partials.ticket = 0;
}

}  // namespace
}  // namespace customloss::cuda
